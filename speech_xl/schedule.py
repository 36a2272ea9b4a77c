"""Intervals, ratios, SST slots and positions: the rule of Speech-XL in plain numpy (who sees whom: visibility.py).

A recording's speech tokens are cut into intervals of `w`. Each closed interval leaves a few memory slots
behind, and everything later sees only those. This file computes, for one interval or for a whole
recording, which rows there are, where they stand and what is kept. Backends execute these plans and
decide nothing. It knows no tensors, no audio and no text.

Letters: N speech tokens of a recording, n of one interval, K Speech Summarization Tokens (SSTs), M memory
slots, P prefix tokens, R rows. A ratio alpha is speech tokens per SST; None is "raw": the interval keeps
its own key/values and gets no SST (alpha = 1 is legal and something else).
Source: Speech-XL (arXiv 2602.05373), interleaving after Activation Beacon (arXiv 2401.03462).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from speech_xl.errors import ScheduleError
from speech_xl.visibility import Rows, join_rows, prefix_rows, stretch_of_rows, text_rows, visible

Ratio = int | None  # None is raw


def sst_slots(n: int, ratio: Ratio) -> np.ndarray:
    """Index of the speech token that each SST of an interval of `n` tokens stands after, (K,) int64.

    SST c stands after token min((c + 1) * ratio, n) - 1, so a ragged tail gets its SST too.
    """
    if ratio is None or n == 0:
        return np.zeros(0, np.int64)
    return np.minimum(np.arange(ratio, n + ratio, ratio), n) - 1


def slots_kept(n: int, ratio: Ratio) -> int:
    """Memory slots that an interval of `n` speech tokens leaves: ceil(n / ratio), or n if raw."""
    return n if ratio is None else -(-n // ratio)


def memory_slots(tokens: int, interval: int, ratio: Ratio) -> int:
    """Memory slots of a whole recording of `tokens` speech tokens at one ratio, tail included."""
    full, tail = divmod(tokens, interval)
    return full * slots_kept(interval, ratio) + slots_kept(tail, ratio)


@dataclass(frozen=True)
class FixedRatio:
    """The same ratio for every interval; None is raw."""

    value: Ratio

    def ratio(self, index: int) -> Ratio:
        """Of interval `index`: the one."""
        return self.value


@dataclass(frozen=True)
class ListedRatios:
    """An explicit ratio for each interval; the last one serves any interval beyond the list."""

    values: tuple[Ratio, ...]

    def ratio(self, index: int) -> Ratio:
        """Of interval `index`: its own in the list."""
        return self.values[min(index, len(self.values) - 1)]


@dataclass(frozen=True)
class StepRandomRatio:
    """Training's draw per interval from the curriculum's current set.

    A pure function of (seed, sample, interval index): the same sample gets the same ratios whatever the
    order of samples. Never used at inference.
    """

    choices: tuple[Ratio, ...]
    seed: int
    sample: int

    def ratio(self, index: int) -> Ratio:
        """Of interval `index`: drawn, but the same whenever it is asked for."""
        key = f"{self.seed}/{self.sample}/{index}".encode()
        draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
        return self.choices[draw % len(self.choices)]


RatioPolicy = FixedRatio | ListedRatios | StepRandomRatio


def check_ratio(ratio: Ratio, interval: int, supported: Sequence[int]) -> None:
    """Raise ScheduleError unless `ratio` is raw, or supported and a divisor of `interval`."""
    if ratio is None:
        return
    if ratio not in supported:
        names = ", ".join(["raw", *map(str, supported)])
        raise ScheduleError(f"Ratio {ratio} is not one that this model was trained for; choose one of {names}.")
    if interval % ratio:
        raise ScheduleError(
            f"Ratio {ratio} does not divide the interval of {interval} speech tokens; "
            f"choose an interval that is a multiple of {ratio}."
        )


def ratio_for_budget(
    budget_bytes: int, tokens: int, interval: int, supported: Sequence[int], bytes_per_slot: int, prefix: int = 0
) -> Ratio:
    """The smallest supported ratio (raw first) whose whole memory, prefix included, fits the budget.

    Raises ScheduleError that names the smallest budget which would do.
    """
    needed = 0
    for ratio in (None, *sorted(supported)):
        needed = (prefix + memory_slots(tokens, interval, ratio)) * bytes_per_slot
        if needed <= budget_bytes:
            return ratio
    raise ScheduleError(
        f"A memory budget of {format_bytes(budget_bytes)} is too small for this recording at any ratio; "
        f"{format_bytes(needed)} would do (ratio {max(supported, default='raw')})."
    )


def format_bytes(count: int) -> str:
    """Bytes in the units of --memory-budget, rounded up so that the printed budget is enough."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{-(-count * 100 // size) / 100:g}{unit}"
    return f"{count}B"


class PastInterval(NamedTuple):
    """What is needed of an interval's plan once it was heard; hours of them are kept."""

    base: int
    ratio: Ratio
    last_position: int  # of its last speech token
    spans: np.ndarray  # (m, 2) int64
    evict_from: int
    evicted: int


@dataclass(frozen=True)
class IntervalPlan:
    """What one interval computes and what it leaves behind.

    Rows are [n speech tokens | K SSTs]: standing interleaved is a matter of positions and mask only.
    """

    index: int  # i
    first_token: int  # the interval's first speech token, counted from the recording's start
    base: int  # B_i: prefix plus memory slots before this interval
    ratio: Ratio
    speech_positions: np.ndarray  # (n,) int64, for queries and keys
    sst_after: np.ndarray  # (K,) int64, index in the interval of the token each SST stands after
    sst_query_positions: np.ndarray  # (K,) int64
    slot_positions: np.ndarray  # (m,) int64: key positions of what is kept, for good
    spans: np.ndarray  # (m, 2) int64: speech tokens [first, past the last) of the recording each slot stands for
    # Without SSTs the interval's own rows are kept: all of them (raw), weighted means of them, or the most
    # attended ones.
    selection: np.ndarray | None = None  # (m, n) float32, rows sum to 1
    attended: bool = False
    # Memory slots [evict_from, evict_from + evicted) leave first, and those behind them move up.
    evict_from: int = 0
    evicted: int = 0
    # Beyond the listening horizon: memory slots [hidden_from, hidden_from + hidden) are not seen by this interval.
    hidden_from: int = 0
    hidden: int = 0

    @property
    def tokens(self) -> int:
        """Speech tokens that the interval holds, n."""
        return len(self.speech_positions)

    @property
    def ssts(self) -> int:
        """SSTs that it holds, K; 0 where its own rows are kept."""
        return len(self.sst_after)

    @property
    def kept(self) -> int:
        """Memory slots that this interval adds, m_i."""
        return len(self.slot_positions) - self.evicted

    @property
    def past(self) -> PastInterval:
        """What is needed of this plan afterwards."""
        last = int(self.speech_positions[-1])
        return PastInterval(self.base, self.ratio, last, self.spans, self.evict_from, self.evicted)

    def pooled_tokens(self) -> np.ndarray:
        """(K, ratio) int64: the interval's tokens that each SST stands for, backwards from the last one.

        Where the interval has fewer, its first one is repeated; the SST of a ragged tail reaches into the block before.
        """
        back = np.arange(self.ratio or 0)
        ends = self.spans[: self.ssts, 1] - 1 - self.first_token
        return np.maximum(ends[:, None] - back[None, :], 0)

    def attended_rows(self, attention: np.ndarray) -> np.ndarray:
        """(..., m) int64: where `attended`, the speech rows that stay, in their order.

        attention (..., n): what each speech row got from all the interval's queries that see it, summed. As SnapKV
        (arXiv 2404.14469) chooses, but by all queries; averaged over those that see a row, or early ones would always win.
        """
        average = attention / np.arange(self.tokens, 0, -1)
        best = np.argsort(-average, axis=-1, kind="stable")[..., : self.kept]
        return np.sort(best, axis=-1)

    def rows(self) -> Rows:
        """Its rows [n speech tokens | K SSTs], as visibility knows them."""
        place = np.concatenate([np.arange(self.tokens, dtype=np.int64), self.sst_after])
        slots = self.base - self.evicted + np.arange(len(self.slot_positions), dtype=np.int64)
        kept = slots if self.ratio is None else np.concatenate([np.full(self.tokens, -1), slots[: self.ssts]])
        seen = (self.hidden_from + self.hidden, self.base - self.evicted)
        return stretch_of_rows(1 + self.index, place, kept, seen, self.ssts)

    def speech_mask(self) -> np.ndarray:
        """(n, n) bool: which speech rows of its own interval each speech row sees."""
        rows = self.rows()[: self.tokens]
        return visible(rows, rows)

    def sst_mask(self) -> np.ndarray:
        """(K, n + K) bool: which rows of its own interval each SST sees. Memory within the horizon is always visible."""
        rows = self.rows()
        return visible(rows[self.tokens :], rows)


def block_spans(first_token: int, ends: np.ndarray) -> np.ndarray:
    """(m, 2) int64 spans that tile an interval and end behind its tokens `ends`."""
    stop = first_token + ends + 1
    return np.stack([np.concatenate([[first_token], stop[:-1]])[: len(stop)], stop], axis=1).astype(np.int64)


def plan_interval(index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int = 0) -> IntervalPlan:
    """The plan of one interval of `tokens` speech tokens that starts with `base` slots before it.

    `prefix`, how many of these are text, matters only to summarizers that evict.
    """
    speech = base + np.arange(tokens, dtype=np.int64)
    after = sst_slots(tokens, ratio)
    kept_ends = np.arange(tokens) if ratio is None else after
    slots = base + np.arange(len(kept_ends), dtype=np.int64)
    return IntervalPlan(
        index, first_token, base, ratio, speech, after, base + after, slots, block_spans(first_token, kept_ends)
    )


Planner = Callable[[int, int, int, int, Ratio, int], IntervalPlan]  # plan_interval, or a summarizer's own


class Scheduler:
    """Hands out the plans of one recording in order, keeping the compressed clock.

    `horizon`: memory slots before its own, prefix apart, that an interval sees; None: all of them. With 0 every
    interval is heard as if it were the first, but at its own positions.
    """

    def __init__(
        self,
        interval: int,
        policy: RatioPolicy,
        prefix: int = 0,
        plan: Planner = plan_interval,
        horizon: int | None = None,
    ):
        if interval < 1:
            raise ScheduleError(f"An interval of {interval} speech tokens cannot hold anything; choose 1 or more.")
        self.interval = interval
        self.policy = policy
        self.prefix = prefix
        self.horizon = horizon
        self._plan = plan
        self.index = 0
        self.tokens = 0
        self.base = prefix  # B_i of the next interval; after the last one, B_J, where text starts

    def next(self, tokens: int) -> IntervalPlan:
        """Plan the next `tokens` (1..interval) speech tokens and advance the clock."""
        if not 1 <= tokens <= self.interval:
            raise ValueError(f"an interval holds 1..{self.interval} tokens, not {tokens}")
        ratio = self.policy.ratio(self.index)
        if ratio is not None and self.interval % ratio:
            check_ratio(ratio, self.interval, (ratio,))
        plan = self._plan(self.index, self.tokens, self.base, tokens, ratio, self.prefix)
        if self.horizon is not None:
            audio_slots = self.base - plan.evicted - self.prefix
            hidden = max(0, audio_slots - self.horizon)
            plan = dataclasses.replace(plan, hidden_from=self.prefix, hidden=hidden)
        self.advance(plan)
        return plan

    def advance(self, plan: IntervalPlan) -> None:
        """Move the clock behind a plan, the next one, that a copy of this scheduler has made."""
        self.index += 1
        self.tokens += plan.tokens
        self.base += plan.kept

    def plan_all(self, tokens: int) -> Iterator[IntervalPlan]:
        """The plans of `tokens` more speech tokens, the last one as long as what is left."""
        while tokens > 0:
            n = min(self.interval, tokens)
            yield self.next(n)
            tokens -= n


@dataclass(frozen=True)
class WholePass:
    """A whole recording and several questions as ONE masked forward pass (training; invariant 2).

    Rows: [P prefix | N speech tokens | K SSTs | text blocks one after another].
    """

    prefix: int
    speech: int
    ssts: int
    query_positions: np.ndarray  # (R,) int64
    key_positions: np.ndarray  # (R,) int64; differs from the query's only at SST rows
    rows: Rows  # what each row sees, and is seen by
    pooled_rows: np.ndarray  # (K, most) int64: rows of the speech tokens that each SST stands for, filled with 0 ...
    pooled_ranks: np.ndarray  # (K, most) int64: ... each one's place in its block, backwards from 0; -1 where filled
    sst_ratios: np.ndarray  # (K,) int64

    @cached_property
    def mask(self) -> np.ndarray:
        """(R, R) bool, True where the row (query) sees the column (key)."""
        return visible(self.rows, self.rows)

    @property
    def sst_rows(self) -> slice:
        """Where the SSTs' rows lie among all rows."""
        return slice(self.prefix + self.speech, self.prefix + self.speech + self.ssts)


View = tuple[int, int]  # intervals [first, past the last) that a text block sees


def whole_pass(
    prefix: int,
    plans: Sequence[IntervalPlan],
    text_lengths: Sequence[int] = (),
    skipped: np.ndarray | None = None,
    views: Sequence[View] | None = None,
) -> WholePass:
    """Positions and visibility of every row of a recording followed by separate text blocks.

    Each text block sees the prefix, the memory and itself, never another block, and starts at B_J. With `views`
    block b sees the memory of the intervals views[b] alone and starts right behind it, as a question about a span
    does. `skipped` ((J + 1,) int64, non-decreasing), used in training only, moves interval i (and, its last entry,
    the text behind the whole memory) forward by that many positions, as if that much more memory lay before it: a
    short recording then practises the positions of an hour.
    """
    shift = np.zeros(len(plans) + 1, np.int64) if skipped is None else skipped
    seen = [(0, len(plans))] * len(text_lengths) if views is None else list(views)

    def joined(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int64), *arrays])

    def slots_of(view: View) -> tuple[int, int]:
        """Memory slots [first, stop) of the intervals that a block sees."""
        if view[0] >= view[1]:
            return 0, 0
        last = plans[view[1] - 1]
        return plans[view[0]].base, last.base + last.kept

    def end_of(view: View) -> int:
        """Position right behind the memory that a block sees."""
        last = view[1] - 1
        if last < 0:
            return prefix
        return plans[last].base + plans[last].kept + int(shift[-1] if view[1] == len(plans) else shift[last])

    rows = [prefix_rows(prefix)]
    parts = [p.rows() for p in plans]
    rows += [part[: p.tokens] for part, p in zip(parts, plans, strict=True)]
    rows += [part[p.tokens :] for part, p in zip(parts, plans, strict=True)]
    texts = zip(seen, text_lengths, strict=True)
    rows += [text_rows(-1 - b, n, slots_of(view)) for b, (view, n) in enumerate(texts)]
    speech_positions = joined([p.speech_positions + shift[j] for j, p in enumerate(plans)])
    sst_query = joined([p.sst_query_positions + shift[j] for j, p in enumerate(plans)])
    sst_key = joined([p.slot_positions + shift[j] for j, p in enumerate(plans) if p.ratio is not None])
    text_positions = joined([end_of(view) + np.arange(n) for view, n in zip(seen, text_lengths, strict=True)])
    head = np.arange(prefix)
    return WholePass(
        prefix,
        len(speech_positions),
        len(sst_query),
        np.concatenate([head, speech_positions, sst_query, text_positions]),
        np.concatenate([head, speech_positions, sst_key, text_positions]),
        join_rows(rows),
        *_pooling(prefix, plans),
    )


def _pooling(prefix: int, plans: Sequence[IntervalPlan]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """WholePass.pooled_rows, pooled_ranks and sst_ratios."""
    blocks = [(p, p.ratio) for p in plans if p.ssts and p.ratio is not None]
    most = max((ratio for _, ratio in blocks), default=0)
    rows = np.zeros((sum(p.ssts for p, _ in blocks), most), np.int64)
    ranks, ratios = np.full_like(rows, -1), np.zeros(len(rows), np.int64)
    at = 0
    for p, ratio in blocks:
        here = slice(at, at + p.ssts)
        rows[here, :ratio] = prefix + p.first_token - plans[0].first_token + p.pooled_tokens()
        ranks[here, :ratio], ratios[here] = np.arange(ratio), ratio
        at += p.ssts
    return rows, ranks, ratios
