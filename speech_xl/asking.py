"""One question to a memory: the answer as it is spoken, and where in the recording it comes from.

It decides when an answer ends and turns attention into evidence; it knows no framework.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speech_xl.evidence import Evidence, find_evidence
from speech_xl.memory import AudioMemory
from speech_xl.recall import recall
from speech_xl.slices import slice_memory

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel


@dataclass(frozen=True)
class Answer:
    question: str
    answer: str
    evidence: list[Evidence]
    seconds: float  # from asking to the last token
    heard_seconds: float  # of the recording, when it was asked
    finish_reason: str = "stop"  # "length": it was broken off at the most tokens that were allowed
    warnings: tuple[str, ...] = ()  # a sentence each


class Asking:
    """One question. Iterate for pieces of the answer's text; `answer` is there when they end."""

    def __init__(
        self, model: SpeechModel, memory: AudioMemory, question: str, longest: int, span: tuple[float, float] | None
    ):
        self._model = model
        self._memory = memory
        self._question = question
        self._span = span
        self._ids = model.prompt.question_ids(question)
        self._longest = longest
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        started = time.monotonic()
        model, memory = self._model, self._memory_to_read()
        steps = model.backend.answer(memory.state, self._ids, memory.position)
        said: list[int] = []
        shown, attention, rows = "", np.zeros(memory.slots), 0
        finish_reason = "length"
        try:
            while len(said) < self._longest:
                with model.lock:
                    step = next(steps)
                attention += step.slot_weights
                rows += 1
                if step.token in model.prompt.end_ids:
                    finish_reason = "stop"
                    break
                said.append(step.token)
                text = model.prompt.decode(said)
                # A character may take several tokens: half of one is held back.
                if text.startswith(shown) and len(text) > len(shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
                    yield text[len(shown) :]
                    shown = text
        finally:
            steps.close()
        text = model.prompt.decode(said)
        if text.startswith(shown) and len(text) > len(shown):
            yield text[len(shown) :]
        weights = attention[len(memory.prefix) :] / max(1, rows)
        evidence = find_evidence(weights, memory.slot_times)
        warnings = model.position_warnings(memory.position + len(self._ids) + len(said))
        self.answer = Answer(
            self._question, text, evidence, time.monotonic() - started, memory.seconds, finish_reason, warnings
        )

    def _memory_to_read(self) -> AudioMemory:
        """The words that the question is about, where the checkpoint recalls; else the memory, or its part in the span."""
        memory, span = self._memory, self._span
        recalled = recall(self._model, memory, self._ids, span or (0.0, memory.seconds))
        if recalled is memory and span is not None:
            return slice_memory(self._model, memory, *span)
        return recalled
