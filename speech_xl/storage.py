"""In how many bits a memory keeps its keys and values, and how many bytes a slot then takes.

Quantized rows are kept per group of neighbouring numbers of one head: each number a code of `bits`, each
group a scale and a lowest value in the model's own type; number = lowest + code * scale. A memory grows by pages of one
size, which are allocated a few at a time and never moved. Both backends execute this layout. It knows no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from speech_xl.config import ModelConfig
from speech_xl.errors import BackendError

MEMORY_BITS = (16, 8, 4)
LARGEST_GROUP = 64  # numbers that share a scale; MLX's usual size for weights
PAGE_SLOTS = (
    512  # slots of one layer that forks share or copy: larger ones are read a little faster, smaller ones waste less
)
SLAB_PAGES = 16  # the most that are allocated at a time


@dataclass(frozen=True)
class MemoryStorage:
    """How one row of head_dim numbers is kept. 16 bits: as the model computes, whatever its type is."""

    bits: int
    group_size: int

    @property
    def is_packed(self) -> bool:
        """Whether numbers are kept as codes with scales."""
        return self.bits < 16

    @property
    def levels(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def bytes_per_slot(self, config: ModelConfig, itemsize: int) -> int:
        """Bytes of one slot's keys and values in all layers; `itemsize` is that of the model's own type."""
        numbers = config.kv_values_per_slot
        if not self.is_packed:
            return numbers * itemsize
        return numbers * self.bits // 8 + numbers // self.group_size * 2 * itemsize


def memory_storage(bits: int, head_dim: int) -> MemoryStorage:
    """The layout for `bits`; the group is the largest even part of a head that divides it."""
    if bits not in MEMORY_BITS:
        raise BackendError(f"A memory of {bits} bits is not possible; choose 16, 8 or 4.")
    return MemoryStorage(bits, max(g for g in range(2, LARGEST_GROUP + 1, 2) if head_dim % g == 0))


def pages_to_allocate(pages: int, needed: int) -> int:
    """How many pages side by side a memory of so many takes next, when the rows to be added need `needed`.

    More than these are at most half of the memory: fewer at a time would be more calls to read it (docs/performance.md).
    """
    return min(max(1 + pages // 2, needed), SLAB_PAGES)
