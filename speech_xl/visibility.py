"""Who sees whom: the rule of visibility, for any block of rows (queries) and columns (keys).

It stands here once. Streaming, the one masked pass of training and whatever else attends take their masks from
`visible`, or run a causal kernel where `visible` says causal. It knows index arrays only: no positions (a clock of its
own, schedule.py), no tensors.

Letters: R rows, Q of them as queries, K as keys.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

PREFIX = 0  # the stretch of the text before the audio
CAUSAL = "causal"  # a mask in a word: as many queries as keys, and each sees the keys up to its own place
Mask = np.ndarray | str | None  # (..., Q, K) bool, or CAUSAL; None: every query sees every key


@dataclass(frozen=True)
class Rows:
    """What visibility has to know of R rows. Every array is (R,): `sst` bool, the others int64.

    A row belongs to a stretch: the prefix, an interval, or a text behind the audio.
    """

    stretch: np.ndarray  # PREFIX, or a number that no other interval or text has
    place: np.ndarray  # order within its stretch; an SST has that of the token that it stands after
    sst: np.ndarray
    slot: np.ndarray  # the memory slot that the row leaves, prefix included; -1: it leaves none
    first: np.ndarray  # as a query it sees memory slots [first, stop) beside the prefix, ...
    stop: np.ndarray  # ... whose owners' stretches are closed

    def __len__(self) -> int:
        return len(self.stretch)

    def __getitem__(self, rows: Any) -> Rows:
        """Some of the rows: visible(rows[a:b], rows[c:d]) is a block of the whole mask."""
        return Rows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def stretch_of_rows(number: int, place: np.ndarray, slot: np.ndarray, seen: tuple[int, int], ssts: int = 0) -> Rows:
    """The rows of one stretch; the last `ssts` of them are SSTs. place and slot (R,) int64; `seen`: slots [first, stop)."""
    count = len(place)
    sst = np.arange(count) >= count - ssts
    return Rows(np.full(count, number), place, sst, slot, np.full(count, seen[0]), np.full(count, seen[1]))


def prefix_rows(count: int) -> Rows:
    """The text before the audio: prefix token j keeps slot j."""
    index = np.arange(count, dtype=np.int64)
    return stretch_of_rows(PREFIX, index, index, (0, 0))


def text_rows(number: int, count: int, seen: tuple[int, int]) -> Rows:
    """A text behind the audio that sees memory slots [first, stop); it leaves nothing in the memory."""
    return stretch_of_rows(number, np.arange(count, dtype=np.int64), np.full(count, -1), seen)


def join_rows(parts: list[Rows]) -> Rows:
    """Rows one after another."""
    none = prefix_rows(0)
    return Rows(**{f.name: np.concatenate([getattr(p, f.name) for p in (none, *parts)]) for f in fields(Rows)})


def sees(query: Rows, key: Rows) -> np.ndarray:
    """Whether a query sees a key, element by element: the rule itself. The arrays broadcast, and may be any framework's.

    - The prefix is seen by everything behind it, and by itself causally.
    - A row sees its own stretch's tokens up to its own place. An SST is seen, there, by itself alone.
    - Of other stretches a row sees the rows that left the slots [first, stop) of the memory.
    """
    is_own = query.stretch == key.stretch
    own = (key.sst & query.sst & (query.slot == key.slot)) | (~key.sst & (key.place <= query.place))
    kept = (key.slot >= query.first) & (key.slot < query.stop) & (key.slot >= 0)
    past = ((key.stretch == PREFIX) | kept) & (query.stretch != PREFIX)
    seen: np.ndarray = (is_own & own) | (~is_own & past)
    return seen


def visible(queries: Rows, keys: Rows) -> np.ndarray:
    """(Q, K) bool: whether each query sees each key."""
    return sees(queries[:, None], keys[None])


def may_see(queries: Rows, keys: Rows, size: int) -> np.ndarray:
    """(ceil(Q / size), ceil(K / size)) bool: False where no query of a block of `size` rows sees any key of a block.

    It bounds `sees` by the least and greatest number of each block, so that the work does not grow with Q * K: who
    attends in blocks leaves these out, and masks the others.
    """

    def least(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.minimum.reduceat(values, np.arange(0, len(values), size))
        return found

    def most(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.maximum.reduceat(values, np.arange(0, len(values), size))
        return found

    if not len(queries) or not len(keys):
        return np.zeros((-(-len(queries) // size), -(-len(keys) // size)), bool)
    far = np.iinfo(np.int64).max
    own = (least(queries.stretch)[:, None] <= most(keys.stretch)) & (
        least(keys.stretch) <= most(queries.stretch)[:, None]
    )
    own &= least(keys.place) <= most(queries.place)[:, None]
    first = least(np.where(queries.stop > queries.first, queries.first, far))[:, None]
    kept = (most(keys.slot) >= first) & (least(np.where(keys.slot < 0, far, keys.slot)) < most(queries.stop)[:, None])
    past = (most(keys.stretch == PREFIX) | kept) & most(queries.stretch != PREFIX)[:, None]
    near: np.ndarray = own | past
    return near


def text_mask(padding: np.ndarray, rows: int) -> Mask:
    """What the last `rows` of T columns see of all of them, in B texts of which each has rows to itself: (B, 1, rows, T).

    padding (B, T) bool: columns that belong to no text. Nobody sees these but they themselves, so that nothing is
    computed from nothing. A column may also be a memory slot: text sees all slots that it is given.
    """
    columns = padding.shape[1]
    if not padding.any() and rows in (1, columns):
        return None if rows == 1 else CAUSAL
    text = text_rows(1, columns, (0, 0))
    queries = text[columns - rows :]
    is_itself = queries.place[:, None] == text.place
    seen: np.ndarray = (visible(queries, text) & ~padding[:, None]) | is_itself
    return seen[:, None]
