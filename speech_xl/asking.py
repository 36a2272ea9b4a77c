"""Questions to a memory: each answer as it is spoken, and where in the recording it comes from.

It decides when an answer ends and turns attention into evidence; it knows no framework.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speech_xl.backend import Step
from speech_xl.evidence import Evidence, evidence_heat, find_evidence
from speech_xl.memory import AudioMemory
from speech_xl.recall import recall
from speech_xl.sampling import GREEDY, Sampling
from speech_xl.slices import slice_memory
from speech_xl.spoken_numbers import settled, spoken

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel

QUESTIONS_AT_ONCE = 16  # in one batch: a token of all of them takes little longer than one of one


@dataclass(frozen=True)
class Answer:
    """An answer, where it comes from and what it took."""

    question: str
    answer: str
    evidence: list[Evidence]
    seconds: float  # from asking to the last token; of answers that came in one batch, their equal shares of it
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


class _Telling:
    """One answer as it is told: steps go in, pieces of text come out, and at the end all that is known of it."""

    def __init__(self, asking: Asking, memory: AudioMemory, question: str):
        """`memory` and `question`: as they are read, see Asking.to_read."""
        self._asking, self._memory, self.model = asking, memory, asking.model
        self.ids = self.model.prompt.question_ids(question)
        self._said: list[int] = []
        self._shown, self._attention, self._rows = "", np.zeros(memory.slots), 0
        self._finish_reason = "length"
        self.is_over = asking.longest < 1

    def add(self, step: Step) -> str:
        """Take the next step -> the text that it makes certain."""
        model, said, stop = self.model, self._said, self._asking.stop
        self._attention += step.slot_weights
        self._rows += 1
        if step.token in model.prompt.end_ids:
            self._finish_reason, self.is_over = "stop", True
            return ""
        said.append(step.token)
        self.is_over = len(said) >= self._asking.longest
        text = self._spelled(is_over=False)
        if find_stop(text, stop) is not None:
            self._finish_reason, self.is_over = "stop", True
            return ""
        # A character may take several tokens: half of one is held back, and so is what may begin a stop.
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._show(text[: before_stop(text, stop)])

    def end(self, seconds: float) -> tuple[str, Answer]:
        """What was held back, and the answer; `seconds` it took."""
        asking, memory = self._asking, self._memory
        text = self._spelled(is_over=True)
        text = text[: find_stop(text, asking.stop)]
        weights = self._attention[len(memory.prefix) :] / max(1, self._rows)
        evidence = find_evidence(weights, memory.slot_times)
        heat = evidence_heat(weights, memory.slot_times, memory.seconds)
        warnings = self.model.position_warnings(memory.position + len(self.ids) + len(self._said))
        return self._show(text), Answer(
            asking.question,
            text,
            evidence,
            seconds,
            memory.seconds,
            self._finish_reason,
            warnings,
            len(self._said),
            heat,
        )

    def _show(self, text: str) -> str:
        if not (text.startswith(self._shown) and len(text) > len(self._shown)):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new

    def _spelled(self, is_over: bool) -> str:
        """The answer so far, less what may still change."""
        text = self.model.prompt.decode(self._said)
        if not self.model.config.prompt.spoken:
            return text
        return spoken(text) if is_over else settled(text)


class Asking:
    """One question. Iterate for pieces of the answer's text; `answer` is there when they end.

    The answer ends before the first text of `stop` (none of them empty), if it comes to one.
    """

    def __init__(
        self,
        model: SpeechModel,
        memory: AudioMemory,
        question: str,
        longest: int,
        span: tuple[float, float] | None = None,
        stop: Sequence[str] = (),
        sampling: Sampling = GREEDY,
    ):
        self.model, self.memory, self.question, self.span = model, memory, question, span
        model.prompt.question_ids(question)  # QuestionError if it cannot be asked
        self.longest, self.stop = longest, tuple(stop)
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
        memory, question = self.to_read()
        telling = _Telling(self, memory, question)
        steps = self.model.together.answer(memory, telling.ids, self._sampling.chooser())
        try:
            while not telling.is_over:
                piece = telling.add(next(steps))
                if piece:
                    yield piece
        finally:
            steps.close()
        piece, answer = telling.end(time.monotonic() - started)
        if piece:
            yield piece
        self._answer = answer

    def to_read(self) -> tuple[AudioMemory, str]:
        """The words that the question is about, where the checkpoint recalls; else the memory, or its part in the span. And
        the question as it is put to them.
        """
        memory, span = self.memory, self.span
        recalled, question = recall(self.model, memory, self.question, span or (0.0, memory.seconds))
        if recalled is memory and span is not None:
            recalled = slice_memory(self.model, memory, *span)
        return recalled, question


def tell_together(askings: Sequence[Asking]) -> Iterator[Answer]:
    """The greedy answers to several questions, in their order: those that read the same memory in one batch."""
    for at in range(0, len(askings), QUESTIONS_AT_ONCE):
        started = time.monotonic()
        tellings: list[_Telling] = []
        memories: list[AudioMemory] = []
        groups: list[list[int]] = []  # of numbers of questions that read the same memory
        for number, asking in enumerate(askings[at : at + QUESTIONS_AT_ONCE]):
            memory, question = asking.to_read()
            tellings.append(_Telling(asking, memory, question))
            memories.append(memory)
            group = next((g for g in groups if _is_same(memories[g[0]], memory)), None)
            if group is None:
                groups.append(group := [])
            group.append(number)
        for group in groups:
            _tell_group([tellings[number] for number in group], memories[group[0]])
        share = (time.monotonic() - started) / len(tellings)
        for telling in tellings:
            yield telling.end(share)[1]


def _tell_group(tellings: Sequence[_Telling], memory: AudioMemory) -> None:
    """Hear answers that read one memory to their ends."""
    model = tellings[0].model
    steps = model.backend.answer_together(
        memory.state, [t.ids for t in tellings], memory.position, model.prompt.end_ids
    )
    try:
        while not all(telling.is_over for telling in tellings):
            with model.lock:
                found = next(steps)
            for number, step in found.items():
                if not tellings[number].is_over:
                    tellings[number].add(step)
    finally:
        steps.close()


def _is_same(one: AudioMemory, other: AudioMemory) -> bool:
    """Whether two memories that were made of one by `to_read` hold the same rows."""
    return one is other or (
        one.text_position == other.text_position
        and np.array_equal(one.spans, other.spans)
        and np.array_equal(one.times, other.times)
    )
