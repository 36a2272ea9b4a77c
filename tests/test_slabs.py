"""Pages lie side by side in slabs, and attention reads those of a slab at once: the same numbers, few calls, little slack.

The slow way is one softmax over all rows in one piece, in plain numpy. What is counted is calls, pages and rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from speech_xl.backend import BACKENDS, is_installed
from speech_xl.storage import MEMORY_BITS, PAGE_SLOTS, SLAB_PAGES, memory_storage, pages_to_allocate
from tests.tiny import tiny_config

TWINS = [name for name in BACKENDS if is_installed(name)]
KV_HEADS, WIDTH, THETA, SLOTS = 2, 8, 10_000.0, 3
few = settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate])


@pytest.fixture(autouse=True, scope="module")
def little_pages():
    """Pages of three slots, so that a few rows have many."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TWINS:
            patch.setattr(import_module(f"{name}_backend.memory"), "PAGE_SLOTS", SLOTS)
        yield


def tensor_of(name: str) -> Callable[[np.ndarray], Any]:
    if name == "torch":
        import torch

        return torch.from_numpy
    import mlx.core as mx

    return mx.array


def empty(name: str, bits: int = 16) -> Any:
    """A memory of one layer."""
    memory, attention = (import_module(f"{name}_backend.{part}") for part in ("memory", "attention"))
    storage = memory_storage(bits, WIDTH)

    def turn(x: Any, positions: int) -> Any:
        return attention.turned(x, positions, THETA)

    if name == "torch":
        import torch

        return memory.KeyValues(KV_HEADS, WIDTH, torch.float32, torch.device("cpu"), storage, turn)
    import mlx.core as mx

    return memory.KeyValues(KV_HEADS, WIDTH, mx.float32, storage, turn)


@dataclass
class Kept:
    """A memory, and the rows that it should hold: (kv_heads, M, head_dim) keys before their turns, values, turns (M,)."""

    memory: Any
    keys: np.ndarray = field(default_factory=lambda: np.zeros((KV_HEADS, 0, WIDTH), np.float32))
    values: np.ndarray = field(default_factory=lambda: np.zeros((KV_HEADS, 0, WIDTH), np.float32))
    turns: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def picked(self, memory: Any, rows: np.ndarray, moved: np.ndarray | int = 0) -> Kept:
        return Kept(memory, self.keys[:, rows], self.values[:, rows], self.turns[rows] + moved)

    def append(self, keys: np.ndarray, values: np.ndarray, tensor: Callable[[np.ndarray], Any]) -> None:
        self.memory.append(tensor(keys[None]), tensor(values[None]))
        self.keys, self.values = (np.concatenate(p, axis=1) for p in ((self.keys, keys), (self.values, values)))
        self.turns = np.pad(self.turns, (0, keys.shape[1]))

    def turned_keys(self) -> np.ndarray:
        angle = self.turns[:, None] * THETA ** (-np.arange(0, WIDTH, 2) / WIDTH)
        cos, sin = (np.concatenate([part, part], axis=-1) for part in (np.cos(angle), np.sin(angle)))
        left, right = np.split(self.keys, 2, axis=-1)
        return self.keys * cos + np.concatenate([-right, left], axis=-1) * sin


@st.composite
def deeds(draw: st.DrawFn) -> list[tuple[str, int, float, float]]:
    """(what, how many rows, two places as shares of a memory)."""
    kinds = st.sampled_from(["append", "append", "append", "fork", "evict", "slice", "join"])
    one = st.tuples(kinds, st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
    return draw(st.lists(one, min_size=1, max_size=10))


def done(name: str, bits: int, drawn: list[tuple[str, int, float, float]]) -> list[Kept]:
    """All memories that these deeds leave behind, each with what it should hold."""
    tensor, rng = tensor_of(name), np.random.default_rng(1)
    all_kept, kept = [], Kept(empty(name, bits))
    for what, count, *places in drawn:
        length = len(kept.turns)
        first, stop = sorted(round(place * length) for place in places)
        if what == "append":
            rows = rng.standard_normal((2, KV_HEADS, count, WIDTH)).astype(np.float32)
            kept.append(*rows, tensor)
        elif what == "evict":
            kept.memory.evict(first, stop - first)
            rows = np.r_[0:first, stop:length]
            kept = kept.picked(kept.memory, rows, np.where(rows >= stop, first - stop, 0))
        elif what == "slice":
            all_kept.append(kept)
            kept = kept.picked(kept.memory.rows((0, first), (stop, length)), np.r_[0:first, stop:length])
        elif what == "fork":
            all_kept.append(kept)
            kept = kept.picked(kept.memory.fork(), np.arange(length))
        else:
            other = kept.picked(kept.memory.rows((first, stop)), np.arange(first, stop), count)
            joined = Kept(
                kept.memory.followed_by(other.memory, count),
                *(np.concatenate([getattr(k, part) for k in (kept, other)], axis=1) for part in ("keys", "values")),
                np.concatenate([kept.turns, other.turns]),
            )
            all_kept.append(kept)
            kept = joined
    return [*all_kept, kept]


def attention_of(name: str) -> Any:
    config = tiny_config(decoder__rope_theta=THETA)
    return import_module(f"{name}_backend.attention").Attention(config.decoder, None)


def softmax_over_all(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q (B, H, R, head_dim) -> attention, log-sum-exps, and weights (B, H, R, M)."""
    group = q.shape[1] // KV_HEADS
    scores = q @ keys.repeat(group, axis=0).swapaxes(-1, -2) / np.sqrt(WIDTH)
    total = np.log(np.exp(scores).sum(-1))
    weights = np.exp(scores - total[..., None])
    return weights @ values.repeat(group, axis=0), total, weights


@pytest.mark.parametrize("name", TWINS)
@few
@given(
    drawn=deeds(),
    bits=st.sampled_from(MEMORY_BITS),
    batch=st.integers(1, 2),
    rows=st.integers(1, 3),
    most=st.sampled_from([1, 8, 40, 2**14]),
)
def test_attention_to_slabs_is_one_softmax_over_all_rows(
    name: str, drawn: list, bits: int, batch: int, rows: int, most: int
) -> None:
    """Whatever was forked, sliced, evicted and joined before, and however many rows wait to be joined."""
    module, tensor, layer = import_module(f"{name}_backend.attention"), tensor_of(name), attention_of(name)
    q = np.random.default_rng(2).standard_normal((batch, 4, rows, WIDTH)).astype(np.float32)
    for kept in done(name, bits, drawn):
        keys, values = (np.asarray(part)[0] for part in kept.memory.joined())
        assert keys.shape[1] == values.shape[1] == kept.memory.length == len(kept.turns)
        if bits == 16:
            np.testing.assert_allclose(keys, kept.turned_keys(), atol=1e-5)
            np.testing.assert_array_equal(values, kept.values)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "ROWS_AT_ONCE", most)
            pieces = layer.attend_memory(tensor(q), kept.memory)
        assert len(pieces) == (kept.memory.length > 0)
        if not pieces:
            assert layer.weigh(tensor(q)[:, :, -1:], tensor(q)[:, :, -1:, 0], kept.memory).shape == (batch, 0)
            continue
        out, total = module.join(pieces), module.sum_of(pieces)
        expected, expected_total, weights = softmax_over_all(q, keys, values)
        np.testing.assert_allclose(np.asarray(out), expected, atol=1e-5)
        np.testing.assert_allclose(np.asarray(total), expected_total, atol=1e-5)
        shown = layer.weigh(tensor(q)[:, :, -1:], total[..., -1:], kept.memory)
        np.testing.assert_allclose(np.asarray(shown), weights[:, :, -1].mean(1), atol=1e-5)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("bits", MEMORY_BITS)
def test_a_memory_is_read_in_few_blocks_and_moves_nothing(name: str, bits: int) -> None:
    tensor, module = tensor_of(name), import_module(f"{name}_backend.memory")
    memory, row = empty(name, bits), np.ones((1, KV_HEADS, 1, WIDTH), np.float32)
    slabs: list[Any] = []
    for length in range(1, 100 * SLOTS + 1):
        memory.append(tensor(row), tensor(row))
        if memory.pages[-1].slab is not (slabs[-1] if slabs else None):
            slabs.append(memory.pages[-1].slab)
        assert memory.length == length
        allocated = sum(len(slab[0]) for slab in slabs)
        assert allocated - len(memory.pages) <= len(memory.pages) // 2  # slack, beside what the last page has
    assert len(memory.pages) == 100 and {id(page.slab) for page in memory.pages} == set(map(id, slabs))
    sizes = [len(keys) for keys, _, _ in memory.blocks()]
    assert sum(sizes) == 100 and max(sizes) <= SLAB_PAGES
    assert len(sizes) < 13 if bits == 16 else max(sizes) <= module.UNPACKED_PAGES
    assert max(len(keys) for keys, _, _ in memory.blocks(2)) == 2
    fork = memory.fork()
    fork.append(tensor(row), tensor(row))
    memory.append(tensor(2 * row), tensor(2 * row))
    assert not fork.pages[-1].is_at(memory.pages[-1])  # what is free in a slab belongs to the memory that took it


def test_what_is_known_to_come_lies_side_by_side() -> None:
    assert [pages_to_allocate(pages, 1) for pages in (0, 1, 2, 4, 7, 11, 10**6)] == [1, 1, 2, 3, 4, 6, SLAB_PAGES]
    assert [pages_to_allocate(0, needed) for needed in (2, 9, 100)] == [2, 9, SLAB_PAGES]
    assert PAGE_SLOTS * SLAB_PAGES == 8192
