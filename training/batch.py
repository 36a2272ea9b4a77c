"""A step's recordings, padded to one shape: rows, positions, masks and targets as the core's schedule has them.

It draws ratios, questions and positions from (seed, step, recording) alone; it knows no network. Everything is numpy.

Letters: B recordings, P prefix rows, N speech tokens, K SSTs, T text rows, R = P + N + K + T, A answer rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech_xl.config import SSTConfig
from speech_xl.prompt import Prompt
from speech_xl.schedule import FixedRatio, IntervalPlan, Ratio, Scheduler, StepRandomRatio, View, WholePass, whole_pass
from training.recipe import Stage
from training.samples import Sample

TRANSCRIPT = "transcript"


@dataclass(frozen=True)
class Block:
    """A question and its answer behind the memory of the intervals `view`; `group` is where its figures are counted."""

    question: list[int]
    answer: list[int]  # the end token included
    view: View
    group: tuple[str, str]  # kind, ratio

    @property
    def rows(self) -> int:
        return len(self.question) + len(self.answer) - 1


@dataclass(frozen=True)
class Batch:
    prefix_ids: np.ndarray  # (P,) int64
    speech: np.ndarray  # (B, N) int64: ids of heard words
    text_ids: np.ndarray  # (B, T) int64
    query_positions: np.ndarray  # (B, R) int64
    key_positions: np.ndarray  # (B, R) int64
    mask: np.ndarray  # (B, 1, R, R) bool
    ssts: int  # K
    pooled: tuple[np.ndarray, np.ndarray] | None  # (B, K, most) int64 rows and columns, see Decoder.whole
    answer_rows: np.ndarray  # (A, 2) int64: recording, text row
    targets: np.ndarray  # (A,) int64
    group_of: np.ndarray  # (A,) int64: index in `groups`
    groups: tuple[tuple[str, str], ...]  # kind, ratio
    speech_tokens: int  # without padding


def name_of(ratio: Ratio) -> str:
    return "raw" if ratio is None else str(ratio)


class Batcher:
    """Makes batches for one stage of one checkpoint."""

    def __init__(self, prompt: Prompt, sst: SSTConfig | None, interval: int, transcribe: str, stage: Stage, seed: int):
        self.prompt, self.sst, self.interval, self.stage, self.seed = prompt, sst, interval, stage, seed
        self._transcribe = prompt.question_ids(transcribe)

    def training(self, samples: Sequence[Sample], numbers: Sequence[int], step: int, progress: float) -> Batch:
        """`numbers` are the recordings' places in the whole run: all that is drawn depends on them."""
        choices = self.stage.lesson(progress).ratios
        drawn = []
        for sample, number in zip(samples, numbers, strict=True):
            rng = np.random.default_rng([self.seed, step, number])
            allowed = choices
            if rng.random() < self.stage.uniform:
                allowed = (choices[rng.integers(len(choices))],)
            drawn.append(self._draw(sample, StepRandomRatio(allowed, self.seed, number), rng, self.stage.transcripts))
        return self._collate(drawn)

    def validation(self, samples: Sequence[Sample], numbers: Sequence[int], ratio: Ratio) -> Batch:
        """Every interval at one ratio; the same questions each time."""
        return self._collate([
            self._draw(sample, FixedRatio(ratio), np.random.default_rng([self.seed, number]), 1.0, shift=0)
            for sample, number in zip(samples, numbers, strict=True)
        ])  # fmt: skip

    def _draw(
        self, sample: Sample, policy: FixedRatio | StepRandomRatio, rng: np.random.Generator, transcripts: float,
        shift: int | None = None,
    ) -> tuple[Sample, WholePass, list[Block]]:  # fmt: skip
        if not sample.questions:
            sample = sample.window(self.stage.max_tokens, rng)
        horizon = self.sst.horizon if self.sst else None
        scheduler = Scheduler(self.interval, policy, len(self.prompt.prefix_ids), horizon=horizon)
        plans = list(scheduler.plan_all(len(sample.speech)))
        ratios = {name_of(p.ratio) for p in plans}
        ratio = ratios.pop() if len(ratios) == 1 else "mixed"
        chosen = np.sort(rng.permutation(len(sample.questions))[: self.stage.questions])
        blocks = [
            Block(self.prompt.question_ids(q.text), [*self.prompt.text_ids(q.answer), self.prompt.end_id],
                  (0, len(plans)), (q.kind, ratio))
            for q in (sample.questions[i] for i in chosen)
        ]  # fmt: skip
        asked = rng.random(len(plans)) < transcripts
        if not blocks and not asked.any():
            asked[rng.integers(len(plans))] = True
        blocks += [self._transcript(sample, plan) for plan, ask in zip(plans, asked, strict=True) if ask]
        most = self.stage.shift if shift is None else shift
        skipped = np.full(len(plans) + 1, rng.integers(0, most + 1)) if most else None
        views = [b.view for b in blocks]
        return sample, whole_pass(len(self.prompt.prefix_ids), plans, [b.rows for b in blocks], skipped, views), blocks

    def _transcript(self, sample: Sample, plan: IntervalPlan) -> Block:
        """An interval's words, asked for behind its own slots."""
        words = sample.speech[plan.first_token : plan.first_token + plan.tokens].tolist()
        view, group = (plan.index, plan.index + 1), (TRANSCRIPT, name_of(plan.ratio))
        return Block(self._transcribe, [*words, self.prompt.end_id], view, group)

    def _collate(self, drawn: Sequence[tuple[Sample, WholePass, list[Block]]]) -> Batch:
        p, b = len(self.prompt.prefix_ids), len(drawn)
        n, k = max(w.speech for _, w, _ in drawn), max(w.ssts for _, w, _ in drawn)
        t = max(sum(block.rows for block in blocks) for *_, blocks in drawn)
        most = max(w.pooled_rows.shape[1] for _, w, _ in drawn)
        rows = p + n + k + t
        speech, text = np.zeros((b, n), np.int64), np.zeros((b, t), np.int64)
        query, key = np.zeros((b, rows), np.int64), np.zeros((b, rows), np.int64)
        mask = np.zeros((b, 1, rows, rows), bool)
        mask[:, 0, np.arange(rows), np.arange(rows)] = True  # padding rows see themselves: no empty softmax
        none = sum(self.sst.ratios) if self.sst else 0
        taken, columns = np.zeros((b, k, most), np.int64), np.full((b, k, most), none, np.int64)
        groups = sorted({block.group for *_, blocks in drawn for block in blocks})
        answer_rows, targets, group_of = [], [], []
        for i, (sample, w, blocks) in enumerate(drawn):
            speech[i, : w.speech] = sample.speech
            place = np.concatenate([
                np.arange(p), p + np.arange(w.speech), p + n + np.arange(w.ssts),
                p + n + k + np.arange(len(w.mask) - p - w.speech - w.ssts),
            ])  # fmt: skip
            query[i, place], key[i, place] = w.query_positions, w.key_positions
            mask[i, 0, place[:, None], place[None, :]] = w.mask
            if w.ssts and self.sst.pooled:
                wide = w.pooled_rows.shape[1]
                taken[i, : w.ssts, :wide] = w.pooled_rows
                columns[i, : w.ssts, :wide] = self.sst.pooling_columns(w.pooled_ranks, w.sst_ratios)
            at = 0
            for block in blocks:
                question, answer = block.question, block.answer
                text[i, at : at + block.rows] = (question + answer)[:-1]
                first = at + len(question) - 1
                answer_rows += [(i, first + j) for j in range(len(answer))]
                targets += answer
                group_of += [groups.index(block.group)] * len(answer)
                at += block.rows
        return Batch(
            np.array(self.prompt.prefix_ids, np.int64), speech, text, query, key, mask, k,
            (taken, columns) if k and self.sst.pooled else None,
            np.array(answer_rows, np.int64).reshape(-1, 2), np.array(targets, np.int64), np.array(group_of, np.int64),
            tuple(groups), sum(w.speech for _, w, _ in drawn),
        )  # fmt: skip
