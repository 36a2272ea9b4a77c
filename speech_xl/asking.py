"""One question to a memory: the answer as it is spoken, and where in the recording it comes from.

It decides when an answer ends and turns attention into evidence; it knows no framework.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speech_xl.evidence import Evidence, evidence_heat, find_evidence
from speech_xl.memory import AudioMemory
from speech_xl.recall import recall
from speech_xl.sampling import GREEDY, Sampling
from speech_xl.slices import slice_memory
from speech_xl.spoken_numbers import settled, spoken

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel


@dataclass(frozen=True)
class Answer:
    """An answer, where it comes from and what it took."""

    question: str
    answer: str
    evidence: list[Evidence]
    seconds: float  # from asking to the last token
    heard_seconds: float  # of the recording, when it was asked
    finish_reason: str = "stop"  # "length": it was broken off at the most tokens that were allowed
    warnings: tuple[str, ...] = ()  # a sentence each
    tokens: int = 0  # that were spoken, the one that ends an answer left out
    heat: tuple[float, ...] = ()  # how much it rests on equal parts of what was heard, see evidence_heat


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of some texts begins in `text`; None if none of them is there."""
    return min((at for s in stop if (at := text.find(s)) >= 0), default=None)


def before_stop(text: str, stop: Sequence[str]) -> int:
    """Characters of `text` that no text of `stop` can begin in, whatever comes behind it."""
    held = (n for s in stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n]))
    return len(text) - max(held, default=0)


class Asking:
    """One question. Iterate for pieces of the answer's text; `answer` is there when they end.

    The answer ends before the first text of `stop` (none of them empty), if it comes to one.
    """

    def __init__(
        self, model: SpeechModel, memory: AudioMemory, question: str, longest: int,
        span: tuple[float, float] | None = None, stop: Sequence[str] = (), sampling: Sampling = GREEDY,
    ):  # fmt: skip
        self._model = model
        self._memory = memory
        self._question = question
        self._span = span
        model.prompt.question_ids(question)  # QuestionError if it cannot be asked
        self._longest = longest
        self._stop = tuple(stop)
        self._sampling = sampling
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer; ValueError before the iteration has ended."""
        if self._answer is None:
            raise ValueError("the question has not been answered to its end")
        return self._answer

    def __iter__(self) -> Iterator[str]:
        started = time.monotonic()
        model = self._model
        memory, question = self._to_read()
        ids = model.prompt.question_ids(question)
        steps = model.together.answer(memory, ids, self._sampling.chooser())
        said: list[int] = []
        shown, attention, rows = "", np.zeros(memory.slots), 0
        finish_reason = "length"
        try:
            while len(said) < self._longest:
                step = next(steps)
                attention += step.slot_weights
                rows += 1
                if step.token in model.prompt.end_ids:
                    finish_reason = "stop"
                    break
                said.append(step.token)
                text = self._spelled(said, is_over=False)
                if find_stop(text, self._stop) is not None:
                    finish_reason = "stop"
                    break
                # A character may take several tokens: half of one is held back, and so is what may begin a stop.
                if text.endswith("\N{REPLACEMENT CHARACTER}"):
                    continue
                text = text[: before_stop(text, self._stop)]
                if text.startswith(shown) and len(text) > len(shown):
                    yield text[len(shown) :]
                    shown = text
        finally:
            steps.close()
        text = self._spelled(said, is_over=True)
        text = text[: find_stop(text, self._stop)]
        if text.startswith(shown) and len(text) > len(shown):
            yield text[len(shown) :]
        weights = attention[len(memory.prefix) :] / max(1, rows)
        evidence = find_evidence(weights, memory.slot_times)
        heat = evidence_heat(weights, memory.slot_times, memory.seconds)
        warnings = model.position_warnings(memory.position + len(ids) + len(said))
        self._answer = Answer(
            self._question, text, evidence, time.monotonic() - started, memory.seconds, finish_reason, warnings, len(said),
            heat,
        )  # fmt: skip

    def _spelled(self, said: list[int], is_over: bool) -> str:
        """The answer so far, less what may still change."""
        text = self._model.prompt.decode(said)
        if not self._model.config.prompt.spoken:
            return text
        return spoken(text) if is_over else settled(text)

    def _to_read(self) -> tuple[AudioMemory, str]:
        """The words that the question is about, where the checkpoint recalls; else the memory, or its part in the span. And
        the question as it is put to them.
        """
        memory, span = self._memory, self._span
        recalled, question = recall(self._model, memory, self._question, span or (0.0, memory.seconds))
        if recalled is memory and span is not None:
            recalled = slice_memory(self._model, memory, *span)
        return recalled, question
