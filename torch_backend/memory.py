"""The keys and values of one decoder layer, in buffers that grow in steps, quantized where asked.

It knows nothing of audio, text or positions: rows come in rotated and stay as they are. Layout and
sizes of quantized rows are the core's (speech_xl/storage.py).
"""

from __future__ import annotations

import torch

from speech_xl.storage import MemoryStorage

GROWTH = 256  # slots: steps of fixed size, so that the slack stays small beside a long memory

Packed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes uint8, scales, lowest values


def pack(rows: torch.Tensor, storage: MemoryStorage) -> Packed:
    """(..., head_dim) -> codes (..., head_dim * bits / 8), scales and lowest values (..., groups) of the rows' type."""
    groups = rows.float().unflatten(-1, (-1, storage.group_size))
    lowest, highest = groups.aminmax(dim=-1)
    lowest = lowest.to(rows.dtype)
    scales = ((highest - lowest.float()) / storage.levels).to(rows.dtype)
    step = scales.float().where(scales > 0, 1.0)[..., None]
    codes = ((groups - lowest.float()[..., None]) / step).round().clamp(0, storage.levels).to(torch.uint8).flatten(-2)
    if storage.bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, scales, lowest


def unpack(packed: Packed, storage: MemoryStorage) -> torch.Tensor:
    """What `pack` kept, (..., head_dim) in the scales' type."""
    codes, scales, lowest = packed
    if storage.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    groups = codes.to(scales.dtype).unflatten(-1, (-1, storage.group_size))
    return (lowest[..., None] + groups * scales[..., None]).flatten(-2)


class KeyValues:
    """Keys and values of shape (B, kv_heads, length, head_dim), appended to, cut at the end, never rewritten.

    B is 1, but where `take` made it.
    """

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, storage: MemoryStorage):
        self.length = 0
        self._storage = storage
        widths, kinds = [head_dim], [dtype]
        if storage.is_packed:
            groups = head_dim // storage.group_size
            widths, kinds = [head_dim * storage.bits // 8, groups, groups], [torch.uint8, dtype, dtype]
        self._buffers = [
            torch.empty(1, kv_heads, 0, w, dtype=kind, device=device)
            for w, kind in zip(widths * 2, kinds * 2, strict=True)
        ]

    def _parts(self, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        """What is kept of rows: keys and values, or the three parts of each."""
        if not self._storage.is_packed:
            return [keys, values]
        return [*pack(keys, self._storage), *pack(values, self._storage)]

    def _filled(self) -> list[torch.Tensor]:
        return [buffer[:, :, : self.length] for buffer in self._buffers]

    @property
    def keys(self) -> torch.Tensor:
        parts = self._filled()
        return unpack(parts[:3], self._storage) if self._storage.is_packed else parts[0]

    @property
    def values(self) -> torch.Tensor:
        parts = self._filled()
        return unpack(parts[3:], self._storage) if self._storage.is_packed else parts[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the filled part."""
        return sum(part.numel() * part.element_size() for part in self._filled())

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rows (1, kv_heads, R, head_dim) behind the present ones."""
        end = self.length + keys.shape[2]
        capacity = self._buffers[0].shape[2]
        for i, rows in enumerate(self._parts(keys, values)):
            if end > capacity:
                old = self._buffers[i]
                grown = old.new_empty(*old.shape[:2], -(-end // GROWTH) * GROWTH, old.shape[3])
                grown[:, :, : self.length] = old[:, :, : self.length]
                self._buffers[i] = grown
            self._buffers[i][:, :, self.length : end] = rows
        self.length = end

    def cut(self, length: int) -> None:
        """Forget the rows from `length` on; what was read of them before stays as it was."""
        self._buffers = [buffer[:, :, :length].clone() for buffer in self._buffers]
        self.length = length

    def take(self, rows: torch.Tensor) -> KeyValues:
        """Copies of some rows of the one batch row: rows (B, R) int64 -> B times R of them, quantized as they are."""
        twin = object.__new__(KeyValues)
        twin.length, twin._storage = rows.shape[1], self._storage
        twin._buffers = [buffer[0][:, rows].transpose(0, 1) for buffer in self._buffers]
        return twin

    def copy(self) -> KeyValues:
        """An independent copy of the filled part."""
        twin = object.__new__(KeyValues)
        twin.length, twin._storage = self.length, self._storage
        twin._buffers = [part.clone() for part in self._filled()]
        return twin
