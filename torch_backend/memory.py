"""The keys and values of one decoder layer: a memory in pages that are never moved, and the cache of texts behind it.

Memories share pages: a fork, a slice and what an interval sees are lists of pages' rows, no copies. Pages are allocated
in slabs, several side by side, so that attention reads those of a slab at once. Quantized pages stay quantized and are
unpacked a few at a time. It knows nothing of audio or text, and of positions only that keys can be turned by a number of
them. Layout and sizes are the core's (speech_xl/storage.py).

Letters: B batch, R rows, M memory slots, T text rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from speech_xl.storage import PAGE_SLOTS, SLAB_PAGES, MemoryStorage, pages_to_allocate

TEXT_ROWS = 128  # that a text's cache grows by
UNPACKED_PAGES = 2  # quantized ones that are unpacked at a time

Packed = Sequence[torch.Tensor]  # codes uint8, scales, lowest values
Turn = Callable[[torch.Tensor, int], torch.Tensor]  # rotated keys or queries, moved on by a number of positions


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


@dataclass(frozen=True)
class Page:
    """Rows [start, stop) of one page of a slab, whose keys stand `turn` positions further than theirs."""

    slab: list[torch.Tensor]  # buffers (pages, kv_heads, PAGE_SLOTS, width)
    number: int  # of the page in its slab
    start: int
    stop: int
    turn: int

    def is_at(self, other: Page) -> bool:
        """Whether both are rows of the same page."""
        return self.slab is other.slab and self.number == other.number

    def goes_on(self, before: Page) -> bool:
        """Whether both are whole pages that lie side by side, `before` first, and can be read at once."""
        is_next = self.slab is before.slab and self.number == before.number + 1 and self.turn == before.turn
        return is_next and (before.start, before.stop, self.start, self.stop) == (0, PAGE_SLOTS, 0, PAGE_SLOTS)


class KeyValues:
    """Keys and values (1, kv_heads, M, head_dim) of a memory, appended to, never rewritten."""

    def __init__(
        self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, storage: MemoryStorage, turn: Turn
    ):
        self.length = 0
        self.pages: list[Page] = []
        self._can_fill = False  # whether rows behind the last page's are its own to write
        self._free: list[Page] = []  # pages of the last slab that nobody has written to, the last one first
        self._storage, self._turn = storage, turn
        widths, kinds = [head_dim], [dtype]
        if storage.is_packed:
            groups = head_dim // storage.group_size
            widths, kinds = [head_dim * storage.bits // 8, groups, groups], [torch.uint8, dtype, dtype]
        self._none = torch.empty(1, kv_heads, 0, head_dim, dtype=dtype, device=device)
        self._empty = [
            torch.empty(1, kv_heads, 0, w, dtype=kind, device=device)
            for w, kind in zip(widths * 2, kinds * 2, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.length * sum(b.shape[1] * b.shape[3] * b.element_size() for b in self._empty)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rows (1, kv_heads, R, head_dim) behind the present ones."""
        done, rows = 0, keys.shape[2]
        while done < rows:
            page = self._page_to_fill(rows - done)
            count = min(rows - done, PAGE_SLOTS - page.stop)
            part = self._turn(keys[:, :, done : done + count], page.turn), values[:, :, done : done + count]
            kept = [*pack(part[0], self._storage), *pack(part[1], self._storage)] if self._storage.is_packed else part
            for buffer, new in zip(page.slab, kept, strict=True):
                buffer[page.number, :, page.stop : page.stop + count] = new[0]
            self.pages[-1] = dataclasses.replace(page, stop=page.stop + count)
            done += count
        self.length += rows

    def _page_to_fill(self, rows: int) -> Page:
        """The last page, if it has room that is its own; else a new one, or a copy of the last one. `rows` are to come."""
        last = self.pages[-1] if self.pages else None
        if last is None or last.stop == PAGE_SLOTS:
            self.pages.append(self._new_page(rows))
        elif not self._can_fill:
            page = self._new_page(rows)
            for buffer, old in zip(page.slab, last.slab, strict=True):
                buffer[page.number, :, last.start : last.stop] = old[last.number, :, last.start : last.stop]
            self.pages[-1] = dataclasses.replace(last, slab=page.slab, number=page.number)
        self._can_fill = True
        return self.pages[-1]

    def _new_page(self, rows: int) -> Page:
        """A page that nobody has written to."""
        if not self._free:
            pages = pages_to_allocate(len(self.pages), -(-rows // PAGE_SLOTS))
            slab = [b.new_empty(pages, b.shape[1], PAGE_SLOTS, b.shape[3]) for b in self._empty]
            self._free = [Page(slab, number, 0, 0, 0) for number in reversed(range(pages))]
        return self._free.pop()

    def fork(self) -> KeyValues:
        """The same rows on the same pages; whoever writes behind them first takes a page of its own."""
        return self._of(list(self.pages))

    def rows(self, *ranges: tuple[int, int]) -> KeyValues:
        """The rows [first, past the last) of each range, one range behind the other, on the same pages."""
        return self._of([page for first, stop in ranges for page in self._cut(first, stop)])

    def followed_by(self, other: KeyValues, moved: int) -> KeyValues:
        """These rows and behind them those of `other`, whose keys move on by a number of positions, on the same pages."""
        return self._of([*self.pages, *(dataclasses.replace(page, turn=page.turn - moved) for page in other.pages)])

    def _of(self, pages: list[Page]) -> KeyValues:
        twin = object.__new__(KeyValues)
        twin.pages = pages
        twin.length = sum(page.stop - page.start for page in twin.pages)
        twin._can_fill, twin._free = False, []
        twin._storage, twin._turn, twin._none, twin._empty = self._storage, self._turn, self._none, self._empty
        return twin

    def _cut(self, first: int, stop: int) -> Iterator[Page]:
        """The pages of rows [first, stop)."""
        at = 0
        for page in self.pages if first < min(stop, self.length) else ():
            count = page.stop - page.start
            if at >= stop:
                return
            a, b = max(first - at, 0), min(stop - at, count)
            if a < b:
                yield dataclasses.replace(page, start=page.start + a, stop=page.start + b)
            at += count

    def evict(self, first: int, count: int) -> None:
        """Forget rows [first, first + count). Those behind move up by as many positions: their pages are turned, not rewritten."""
        last = self.pages[-1] if self.pages else None
        before, behind = self._cut(0, first), self._cut(first + count, self.length)
        self.pages = [*before, *(dataclasses.replace(page, turn=page.turn + count) for page in behind)]
        self.length -= count
        end = self.pages[-1] if self.pages else None
        is_same = end is not None and last is not None and end.is_at(last) and end.stop == last.stop
        self._can_fill &= is_same

    def _runs(self, most: int) -> Iterator[tuple[Page, int]]:
        """The pages by runs of at most so many that can be read at once: the first of each, and how many there are."""
        first = 0
        for end in range(1, len(self.pages) + 1):
            is_over = end == len(self.pages) or end - first == most
            if is_over or not self.pages[end].goes_on(self.pages[end - 1]):
                yield self.pages[first], end - first
                first = end

    def blocks(self, most: int = SLAB_PAGES) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """Keys and values (n, kv_heads, rows, head_dim) of n pages, and how many positions further these keys stand.

        n is 1, or the pages are whole, lie side by side and are at most `most`.
        """
        for page, count in self._runs(min(most, UNPACKED_PAGES) if self._storage.is_packed else most):
            parts = [buffer[page.number : page.number + count, :, page.start : page.stop] for buffer in page.slab]
            if self._storage.is_packed:
                parts = [unpack(parts[:3], self._storage), unpack(parts[3:], self._storage)]
            yield *parts, page.turn

    def joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values in one piece, (1, kv_heads, M, head_dim): a copy."""
        keys, values = [self._none], [self._none]
        for k, v, turn in self.blocks():
            keys.extend(self._turn(k, -turn).split(1))
            values.extend(v.split(1))
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)


class TextCache:
    """Keys and values (B, kv_heads, T, head_dim) of B texts, one behind the other in a buffer that grows by TEXT_ROWS."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.length = keys.shape[2]
        self._keys, self._values = keys, values

    @property
    def filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values so far."""
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take rows (B, kv_heads, R, head_dim); return all so far."""
        end = self.length + keys.shape[2]
        if end > self._keys.shape[2]:
            room = (*keys.shape[:2], end + TEXT_ROWS - self.length, keys.shape[3])
            self._keys, self._values = (
                torch.cat([old[:, :, : self.length], old.new_empty(room)], dim=2) for old in (self._keys, self._values)
            )
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self.filled

    def keep(self, texts: list[int]) -> None:
        """Forget all texts but these."""
        self._keys, self._values = self._keys[texts], self._values[texts]
