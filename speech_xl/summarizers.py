"""What an interval leaves behind: trained SSTs, or one of the rules that need no training.

A summarizer is one small class that plans an interval; backends execute the plan and know no names. Those
without training let a checkpoint without SST parameters listen in bounded memory, and are the baselines of
trained ones. It knows positions and weights over rows, no tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from speech_xl.config import ModelConfig
from speech_xl.errors import ScheduleError
from speech_xl.schedule import IntervalPlan, Ratio, block_spans, plan_interval, sst_slots


class Summarizer(Protocol):
    """The rule for what an interval leaves in the memory."""

    @property
    def name(self) -> str:
        """What it is chosen by."""

    @property
    def needs_training(self) -> bool:
        """Whether it plans SSTs, which are worth what the checkpoint's training made of them."""

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        """As schedule.plan_interval. Ratio None is raw, whatever the summarizer."""


class Raw:
    """Every token's own key and value, whatever the ratio: nothing is lost, and nothing saved."""

    name, needs_training = "raw", False

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        return plan_interval(index, first_token, base, tokens, None)


class SSTs:
    """Trained Speech Summarization Tokens: one learned slot per `ratio` speech tokens (arXiv 2602.05373)."""

    name, needs_training = "sst", True

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        return plan_interval(index, first_token, base, tokens, ratio)


class AppendedSSTs(SSTs):
    """SSTs that stand one after another behind their whole interval, and see all of it.

    Each still stands for its block in evidence and in what it pools, but nothing makes it remember that block alone.
    """

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        """As Summarizer.plan."""
        plan = plan_interval(index, first_token, base, tokens, ratio)
        after = np.full(plan.ssts, tokens - 1, np.int64)
        behind = base + tokens + np.arange(plan.ssts, dtype=np.int64)
        return dataclasses.replace(plan, sst_after=after, sst_query_positions=behind)


def _keep_rows(index: int, first_token: int, base: int, tokens: int, ratio: Ratio) -> IntervalPlan:
    """A plan without SSTs whose slots stand for blocks of `ratio` tokens; what they hold is still open."""
    raw = plan_interval(index, first_token, base, tokens, None)
    if ratio is None:
        return raw
    ends = sst_slots(tokens, ratio)
    slots = base + np.arange(len(ends), dtype=np.int64)
    return dataclasses.replace(raw, ratio=ratio, slot_positions=slots, spans=block_spans(first_token, ends))


class Stride:
    """Every `ratio`-th token's own key and value: the last one of each block."""

    name, needs_training = "stride", False

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        plan = _keep_rows(index, first_token, base, tokens, ratio)
        if ratio is None:
            return plan
        chosen = np.eye(tokens, dtype=np.float32)[sst_slots(tokens, ratio)]
        return dataclasses.replace(plan, selection=chosen)


class Pool:
    """The mean of each block's keys and of its values."""

    name, needs_training = "pool", False

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        plan = _keep_rows(index, first_token, base, tokens, ratio)
        if ratio is None:
            return plan
        block = np.arange(tokens) // ratio
        members = (block[None, :] == np.arange(plan.kept)[:, None]).astype(np.float32)
        return dataclasses.replace(plan, selection=members / members.sum(1, keepdims=True))


class Attention:
    """The rows that the interval's own queries attend to most, per layer and head (after SnapKV, arXiv 2404.14469).

    Which rows these are differs from head to head, so a slot's span is its share of the interval.
    """

    name, needs_training = "attention", False

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        plan = _keep_rows(index, first_token, base, tokens, ratio)
        return plan if ratio is None else dataclasses.replace(plan, attended=True)


class Window:
    """The first few tokens and the most recent ones (StreamingLLM, arXiv 2309.17453); the middle is forgotten.

    It has as many slots as the others have at the same ratio, so they compare at equal memory. Slots behind the
    forgotten ones move up: as in the paper, positions count places in the memory.
    """

    name, needs_training = "window", False

    def plan(self, index: int, first_token: int, base: int, tokens: int, ratio: Ratio, prefix: int) -> IntervalPlan:
        plan = _keep_rows(index, first_token, base, tokens, ratio)
        if ratio is None:
            return plan
        before, after = base - prefix, base - prefix + plan.kept  # audio slots
        sink = min(SINK, (before or after) // 2)
        recent = min(tokens, after - sink)
        rows = np.arange(tokens - recent, tokens)
        if not before:
            rows = np.concatenate([np.arange(sink), rows])
        evicted = before + len(rows) - after
        return dataclasses.replace(
            plan,
            speech_positions=plan.speech_positions - evicted,
            slot_positions=base - evicted + np.arange(len(rows), dtype=np.int64),
            spans=first_token + np.stack([rows, rows + 1], axis=1),
            selection=np.eye(tokens, dtype=np.float32)[rows],
            evict_from=prefix + sink,
            evicted=evicted,
        )


SINK = 4  # tokens that attention rests on when it has nothing to say
SUMMARIZERS: dict[str, Summarizer] = {s.name: s for s in (Raw(), SSTs(), Stride(), Pool(), Window(), Attention())}
APPENDED = AppendedSSTs()  # not a choice of its own: a checkpoint's SSTs stand where they were trained to
BEST_UNTRAINED = "attention"
DEFAULT_INTERVAL, UNTRAINED_RATIOS = 256, (2, 4, 8, 16)  # for checkpoints without SSTs


def interval_of(config: ModelConfig) -> int:
    """Speech tokens per interval."""
    return config.sst.interval if config.sst else DEFAULT_INTERVAL


def ssts_of(config: ModelConfig) -> Summarizer:
    """The checkpoint's SSTs, in the places that they were trained in."""
    return APPENDED if config.sst is not None and config.sst.appended else SUMMARIZERS["sst"]


def ratios_of(config: ModelConfig) -> tuple[int, ...]:
    """Ratios that may be asked for, beside raw."""
    return config.sst.ratios if config.sst else UNTRAINED_RATIOS


def choose_summarizer(name: str, config: ModelConfig) -> tuple[Summarizer, str]:
    """-> (summarizer, why). "auto" is SSTs where the checkpoint has trained ones, else the best that needs no training."""
    trained = config.sst is not None and config.sst.trained
    if name == "auto":
        if trained:
            return ssts_of(config), "the checkpoint has trained SSTs"
        return SUMMARIZERS[BEST_UNTRAINED], "the checkpoint has no trained SSTs"
    if name not in SUMMARIZERS:
        raise ScheduleError(f"There is no summarizer {name!r}; choose auto, {', '.join(SUMMARIZERS)}.")
    if name == "sst" and config.sst is None:
        raise ScheduleError("This checkpoint has no SST parameters; choose another summarizer, or auto.")
    return ssts_of(config) if name == "sst" else SUMMARIZERS[name], "it was asked for"
