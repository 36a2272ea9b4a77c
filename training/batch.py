"""A step's recordings, padded to one shape: rows, positions, masks and targets as the core's schedule has them.

It draws ratios, questions and positions from (seed, step, recording) alone, in plain numpy; the network it only runs.

Letters: B recordings, P prefix rows, N speech tokens, K SSTs, T text rows, R = P + N + K + T, A answer rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from speech_xl.schedule import FixedRatio, IntervalPlan, Ratio, Scheduler, StepRandomRatio, View, WholePass, whole_pass
from speech_xl.summarizers import interval_of, ssts_of
from training.recipe import Stage
from training.samples import Sample
from training.speech import Speech, pad_speech
from training.sums import Group, Sums

TRANSCRIPT = "transcript"


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
class Batch:
    """Some recordings with their questions as the rows of one masked pass."""

    prefix_ids: np.ndarray  # (P,) int64
    speech: Speech
    text_ids: np.ndarray  # (B, T) int64
    query_positions: np.ndarray  # (B, R) int64
    key_positions: np.ndarray  # (B, R) int64
    mask: np.ndarray  # (B, 1, R, R) bool
    ssts: int  # K
    pooled: tuple[np.ndarray, np.ndarray] | None  # (B, K, most) int64 rows and columns, see Decoder.whole
    answer_rows: np.ndarray  # (A, 2) int64: recording, text row
    targets: np.ndarray  # (A,) int64
    group_of: np.ndarray  # (A,) int64: index in `groups`
    groups: tuple[Group, ...]
    speech_tokens: int  # without padding


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
        return self._collate(drawn, self.stage.augment, (self.seed, step, int(numbers[0])))

    def validation(self, samples: Sequence[Sample], numbers: Sequence[int], ratio: Ratio) -> Batch:
        """Every interval at one ratio; the same questions each time."""
        drawn = [
            self._draw(sample, FixedRatio(ratio), np.random.default_rng([self.seed, number]), 1.0, shift=0)
            for sample, number in zip(samples, numbers, strict=True)
        ]
        return self._collate(drawn, 0.0, ())

    def _draw(
        self, sample: Sample, policy: FixedRatio | StepRandomRatio, rng: np.random.Generator, transcripts: float,
        shift: int | None = None,
    ) -> tuple[Sample, WholePass, list[Block]]:  # fmt: skip
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

    def _collate(
        self, drawn: Sequence[tuple[Sample, WholePass, list[Block]]], augmentation: float, seed: Sequence[int]
    ) -> Batch:
        p, b = len(self.prompt.prefix_ids), len(drawn)
        n, k = max(w.speech for _, w, _ in drawn), max(w.ssts for _, w, _ in drawn)
        t = max(sum(block.rows for block in blocks) for *_, blocks in drawn)
        most = max(w.pooled_rows.shape[1] for _, w, _ in drawn)
        rows = p + n + k + t
        text = np.zeros((b, t), np.int64)
        query, key = np.zeros((b, rows), np.int64), np.zeros((b, rows), np.int64)
        mask = np.zeros((b, 1, rows, rows), bool)
        mask[:, 0, np.arange(rows), np.arange(rows)] = True  # padding rows see themselves: no empty softmax
        none = sum(self.sst.ratios) if self.sst else 0
        taken, columns = np.zeros((b, k, most), np.int64), np.full((b, k, most), none, np.int64)
        groups = sorted({block.group for *_, blocks in drawn for block in blocks})
        answer_rows, targets, group_of = [], [], []
        for i, (_, w, blocks) in enumerate(drawn):
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
            np.array(self.prompt.prefix_ids, np.int64),
            pad_speech([sample for sample, *_ in drawn], self.config, augmentation, seed), text, query, key, mask, k,
            (taken, columns) if k and self.sst.pooled else None,
            np.array(answer_rows, np.int64).reshape(-1, 2), np.array(targets, np.int64), np.array(group_of, np.int64),
            tuple(groups), sum(w.speech for _, w, _ in drawn),
        )  # fmt: skip

    def losses(self, network: nn.Module, batch: Batch, device: torch.device) -> tuple[torch.Tensor, Sums]:
        """(A,) float32: cross-entropy of each answer token, and the figures of each group."""

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        logits = network(
            tensor(batch.speech.rows), batch.speech.windows and tuple(map(tensor, batch.speech.windows)),
            prefix_ids=tensor(batch.prefix_ids), text_ids=tensor(batch.text_ids),
            query_positions=tensor(batch.query_positions), key_positions=tensor(batch.key_positions),
            mask=tensor(batch.mask), ssts=batch.ssts, pooled=batch.pooled and tuple(map(tensor, batch.pooled)),
            answer_rows=tensor(batch.answer_rows),
        )  # fmt: skip
        targets = tensor(batch.targets)
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        right = (logits.argmax(-1) == targets).float()
        figures = torch.stack([losses.detach(), right, torch.ones_like(losses)], dim=1).cpu().numpy().astype(np.float64)
        return losses, {group: figures[batch.group_of == i].sum(0) for i, group in enumerate(batch.groups)}
