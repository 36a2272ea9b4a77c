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

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel


@dataclass(frozen=True)
class Answer:
    question: str
    answer: str
    evidence: list[Evidence]
    seconds: float  # from asking to the last token
    heard_seconds: float  # of the recording, when it was asked


class Asking:
    """One question. Iterate for pieces of the answer's text; `answer` is there when they end."""

    def __init__(self, model: SpeechModel, memory: AudioMemory, question: str, longest: int):
        self._model = model
        self._memory = memory
        self._question = question
        self._ids = model.prompt.question_ids(question)
        self._longest = longest
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        started = time.monotonic()
        model, memory = self._model, self._memory
        steps = model.backend.answer(memory.state, self._ids, memory.slots)
        said: list[int] = []
        shown, attention, rows = "", np.zeros(memory.slots), 0
        try:
            while len(said) < self._longest:
                with model.lock:
                    step = next(steps)
                attention += step.slot_weights
                rows += 1
                if step.token in model.prompt.end_ids:
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
        self.answer = Answer(self._question, text, evidence, time.monotonic() - started, memory.seconds)
