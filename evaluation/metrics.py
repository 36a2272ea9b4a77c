"""Exact match and evidence, apart for what an order says and for what it does not say.

It knows questions and answers as text and spans as seconds; no audio, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.order_desk import AskedQuestion
from torch_backend.training.grammar import NOT_MENTIONED


@dataclass(frozen=True)
class Answered:
    """One question with what the model said and the span it says it heard it in (seconds)."""

    question: AskedQuestion
    said: str
    strongest: tuple[float, float] | None

    @property
    def right(self) -> bool:
        return self.said.strip().lower() == self.question.answer.strip().lower()

    @property
    def evidence_overlaps(self) -> bool:
        if self.strongest is None:
            return False
        start, end = self.strongest
        return start < self.question.end and end > self.question.start


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


def report(answered: Sequence[Answered]) -> dict[str, float]:
    """Figures of one set of answers.

    `mentioned` and `not_mentioned` are exact match; one figure a slot covers its mentioned questions;
    `swapped` is the share of wrong mentioned answers that are right for another order of the recording
    (retrieval, not hearing, failed); `evidence` is the share of right mentioned answers whose strongest
    span overlaps the true order.
    """
    mentioned = [a for a in answered if a.question.answer != NOT_MENTIONED]
    silent = [a for a in answered if a.question.answer == NOT_MENTIONED]
    answers_of_slot: dict[str, set[str]] = {}
    for a in answered:
        answers_of_slot.setdefault(a.question.slot, set()).add(a.question.answer)
    wrong = [a for a in mentioned if not a.right]
    figures = {"mentioned": mean([a.right for a in mentioned]), "not_mentioned": mean([a.right for a in silent])}
    for slot in answers_of_slot:
        figures[slot] = mean([a.right for a in mentioned if a.question.slot == slot])
    figures["swapped"] = mean([a.said in answers_of_slot[a.question.slot] for a in wrong])
    figures["missed"] = mean([a.said == NOT_MENTIONED for a in wrong])
    figures["evidence"] = mean([a.evidence_overlaps for a in mentioned if a.right])
    return figures
