"""A step's recordings, packed into passes: rows, positions, visibility and targets as the core's schedule has them.

It draws ratios, questions and positions from (seed, step, recording) alone, in plain numpy; the network it only runs.
How rows of several recordings become one pass is packing.py's business.

Letters: P prefix rows, N speech tokens, K SSTs, T text rows, R = P + N + K + T, A answer rows; of a whole pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from speech_xl.schedule import FixedRatio, IntervalPlan, Ratio, Scheduler, StepRandomRatio, View, WholePass, whole_pass
from speech_xl.summarizers import interval_of, ssts_of
from speech_xl.visibility import Rows
from training.attention import BlockAttention
from training.packing import joined_in_order, joined_rows, passes_of
from training.recipe import Stage
from training.samples import Sample
from training.speech import Speech, join_speech
from training.sums import Group, Sums

TRANSCRIPT = "transcript"
POOL_CHUNK = 64  # SSTs whose pooling is one product over the rows they stand for


@dataclass(frozen=True)
class Block:
    """A question and its answer behind the memory of the intervals `view`; `group` is where its figures are counted."""

    question: list[int]
    answer: list[int]  # the end token included
    view: View
    group: Group

    @property
    def rows(self) -> int:
        """Text rows: the last token of an answer is predicted and not read."""
        return len(self.question) + len(self.answer) - 1


@dataclass(frozen=True)
class PoolChunk:
    """Some neighbouring SSTs and the speech tokens that they stand for, as `Attention.pool` takes them."""

    rows: slice  # of a pass: what `tokens` counts from
    tokens: np.ndarray  # (1, k, most) int64
    columns: np.ndarray  # (1, k, most) int64


@dataclass(frozen=True)
class Batch:
    """One pass: recordings one after another behind the one prefix that they share, without padding.

    Rows: [P | speech of each | SSTs of each | texts of each].
    """

    prefix_ids: np.ndarray  # (P,) int64
    speech: Speech
    text_ids: np.ndarray  # (T,) int64
    query_positions: np.ndarray  # (R,) int64
    key_positions: np.ndarray  # (R,) int64
    rows: Rows
    ssts: int  # K
    pooled: tuple[PoolChunk, ...]  # none where SSTs do not pool
    answer_rows: np.ndarray  # (A,) int64: text rows
    targets: np.ndarray  # (A,) int64
    group_of: np.ndarray  # (A,) int64: index in `groups`
    groups: tuple[Group, ...]
    speech_tokens: int  # N


def name_of(ratio: Ratio) -> str:
    """A ratio as reports call it."""
    return "raw" if ratio is None else str(ratio)


class Batcher:
    """Makes batches of questions for one stage of one checkpoint, and their losses."""

    def __init__(self, prompt: Prompt, config: ModelConfig, stage: Stage, seed: int):
        self.prompt, self.config, self.sst, self.stage, self.seed = prompt, config, config.sst, stage, seed
        self.interval = interval_of(config)
        self.plan = ssts_of(config).plan
        self.ratios = stage.ratios

    def shared(self, samples: Sequence[Sample], numbers: Sequence[int], step: int) -> None:
        """What all passes of a step have in common: here nothing, see CTCBatcher."""

    def training(
        self, samples: Sequence[Sample], numbers: Sequence[int], step: int, progress: float, shared: None
    ) -> list[Batch]:
        """The passes of these recordings. `numbers` are their places in the whole run: all that is drawn depends on them."""
        choices = self.stage.lesson(progress).ratios
        drawn = []
        for sample, number in zip(samples, numbers, strict=True):
            rng = np.random.default_rng([self.seed, step, number])
            allowed = choices
            if rng.random() < self.stage.uniform:
                allowed = (choices[rng.integers(len(choices))],)
            drawn.append(self._draw(sample, StepRandomRatio(allowed, self.seed, number), rng, self.stage.transcripts))
        lengths = [len(passed.rows) for _, passed, _ in drawn]
        return [
            self._join([drawn[i] for i in part], self.stage.augment, [(self.seed, step, int(numbers[i])) for i in part])
            for part in passes_of(lengths, self.stage)
        ]

    def validation(self, samples: Sequence[Sample], numbers: Sequence[int], ratio: Ratio, shared: None) -> Batch:
        """Every interval at one ratio; the same questions each time."""
        drawn = [
            self._draw(sample, FixedRatio(ratio), np.random.default_rng([self.seed, number]), 1.0, shift=0)
            for sample, number in zip(samples, numbers, strict=True)
        ]
        return self._join(drawn)

    def _draw(
        self,
        sample: Sample,
        policy: FixedRatio | StepRandomRatio,
        rng: np.random.Generator,
        transcripts: float,
        shift: int | None = None,
    ) -> tuple[Sample, WholePass, list[Block]]:
        if sample.words is not None and not sample.questions:
            sample = sample.window(self.stage.max_tokens, rng)
        prefix, horizon = len(self.prompt.prefix_ids), self.sst.horizon if self.sst else None
        # Words that were recalled are read as one stretch: so are the recordings that are asked about them.
        drawn_from = {policy.value} if isinstance(policy, FixedRatio) else set(policy.choices)
        is_asked = sample.words is not None and len(drawn_from) == 1 and drawn_from <= set(self.stage.asked)
        interval = sample.tokens if is_asked else self.interval
        plans = list(Scheduler(interval, policy, prefix, self.plan, horizon).plan_all(sample.tokens))
        ratios = {name_of(p.ratio) for p in plans}
        ratio = ratios.pop() if len(ratios) == 1 else "mixed"
        everything = (0, len(plans))
        most = self.stage.questions
        if self.stage.asked and sample.words is not None:
            most, transcripts = (most, 0.0) if is_asked else (0, 1.0)
        chosen = np.sort(rng.permutation(len(sample.questions))[:most])
        blocks = [
            Block(self.prompt.question_ids(q.text), self._answer(q.answer), everything, (q.kind, ratio))
            for q in (sample.questions[i] for i in chosen)
        ]
        asked = rng.random(len(plans)) < transcripts
        if not blocks and not asked.any():
            asked[rng.integers(len(plans))] = True
        if sample.words is not None:
            blocks += [self._transcript(sample, plan) for plan, ask in zip(plans, asked, strict=True) if ask]
        elif sample.source.text is not None and (asked[0] or not blocks):
            said = self._answer(sample.source.text)
            blocks.append(Block(self.prompt.transcribe_ids, said, everything, (TRANSCRIPT, ratio)))
        most = self.stage.shift if shift is None else shift
        skipped = np.full(len(plans) + 1, rng.integers(0, most + 1)) if most else None
        return sample, whole_pass(prefix, plans, [b.rows for b in blocks], skipped, [b.view for b in blocks]), blocks

    def _answer(self, text: str) -> list[int]:
        return [*self.prompt.text_ids(text), self.prompt.end_id]

    def _transcript(self, sample: Sample, plan: IntervalPlan) -> Block:
        """An interval's words, asked for behind its own slots."""
        words = sample.words[plan.first_token : plan.first_token + plan.tokens].tolist()
        view, group = (plan.index, plan.index + 1), (TRANSCRIPT, name_of(plan.ratio))
        return Block(self.prompt.transcribe_ids, [*words, self.prompt.end_id], view, group)

    def _join(
        self,
        drawn: Sequence[tuple[Sample, WholePass, list[Block]]],
        augmentation: float = 0.0,
        seeds: Sequence[Sequence[int]] = (),
    ) -> Batch:
        p = len(self.prompt.prefix_ids)
        passes = [passed for _, passed, _ in drawn]
        texts = [block for *_, blocks in drawn for block in blocks]
        groups = sorted({block.group for block in texts})
        answer_rows, at = [], 0
        for block in texts:
            first = at + len(block.question) - 1
            answer_rows.append(np.arange(first, first + len(block.answer)))
            at += block.rows
        ids = [(block.question + block.answer)[:-1] for block in texts]
        return Batch(
            np.array(self.prompt.prefix_ids, np.int64),
            join_speech([sample for sample, *_ in drawn], self.config, augmentation, seeds),
            np.concatenate(ids).astype(np.int64),
            joined_in_order(passes, [w.query_positions for w in passes]),
            joined_in_order(passes, [w.key_positions for w in passes]),
            joined_rows(passes),
            sum(w.ssts for w in passes),
            self._pooling(p, passes),
            np.concatenate(answer_rows),
            np.concatenate([block.answer for block in texts]).astype(np.int64),
            np.repeat([groups.index(block.group) for block in texts], [len(block.answer) for block in texts]),
            tuple(groups),
            sum(w.speech for w in passes),
        )

    def _pooling(self, prefix: int, passes: Sequence[WholePass]) -> tuple[PoolChunk, ...]:
        """All recordings' SSTs in chunks, each with the stretch of rows that it pools: a few of many rows."""
        if self.sst is None or not self.sst.pooled:
            return ()
        most = max(1, *(w.pooled_rows.shape[1] for w in passes))
        none = sum(self.sst.ratios)
        taken, columns, before = [], [], 0
        for w in passes:
            wide = ((0, 0), (0, most - w.pooled_rows.shape[1]))
            is_filled = np.pad(w.pooled_ranks, wide, constant_values=-1) < 0
            taken.append(np.where(is_filled, prefix, np.pad(w.pooled_rows, wide)) + before)
            found = self.sst.pooling_columns(w.pooled_ranks, w.sst_ratios)
            columns.append(np.pad(found, wide, constant_values=none))
            before += w.speech
        chunks = []
        rows, weights = np.concatenate(taken), np.concatenate(columns)
        for first in range(0, max(1, len(rows)), POOL_CHUNK):
            here, weight = rows[first : first + POOL_CHUNK], weights[first : first + POOL_CHUNK]
            used = here[weight < none] if len(here) else np.zeros(1, np.int64)
            low, high = int(used.min()), int(used.max()) + 1
            chunks.append(PoolChunk(slice(low, high), np.clip(here - low, 0, high - low - 1)[None], weight[None]))
        return tuple(chunks)

    def losses(self, network: nn.Module, batch: Batch, device: torch.device) -> tuple[torch.Tensor, Sums]:
        """(A,) float32: cross-entropy of each answer token, and the figures of each group."""

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        losses, right = network(
            tensor(batch.speech.rows),
            batch.speech.windows and tuple(map(tensor, batch.speech.windows)),
            prefix_ids=tensor(batch.prefix_ids),
            text_ids=tensor(batch.text_ids),
            query_positions=tensor(batch.query_positions),
            key_positions=tensor(batch.key_positions),
            attend=BlockAttention(batch.rows, device),
            ssts=batch.ssts,
            pooled=[(c.rows, tensor(c.tokens), tensor(c.columns)) for c in batch.pooled],
            answer_rows=tensor(batch.answer_rows),
            targets=tensor(batch.targets),
        )
        figures = torch.stack([losses.detach(), right, torch.ones_like(losses)], dim=1).cpu().numpy().astype(np.float64)
        return losses, {group: figures[batch.group_of == i].sum(0) for i, group in enumerate(batch.groups)}
