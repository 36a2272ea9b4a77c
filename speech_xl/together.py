"""Questions about one memory that come while the model is busy: they are answered in one batch.

A batch takes in whoever comes before its first step. From then on each asker takes the steps of its own answer, and the
first that lacks one computes one for all, so that nobody waits for a schedule and no thread is needed. Whoever asks alone
is answered as ever. It knows who waits; what a question or a step is, is others' subject.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from speech_xl.backend import Step
from speech_xl.fair_lock import FairLock
from speech_xl.sampling import Choose

if TYPE_CHECKING:
    from speech_xl.memory import AudioMemory
    from speech_xl.model import SpeechModel


class Together:
    """The answers that one model is at work on. Safe from any thread."""

    def __init__(self, model: SpeechModel):
        self._model = model
        self._guard = threading.RLock()  # a generator may be collected, and so leave, wherever memory is asked for
        self._open: dict[int, _Batch] = {}  # by the identity of the memory: those that have not begun

    def answer(self, memory: AudioMemory, ids: list[int], choose: Choose | None = None) -> Generator[Step]:
        """Steps of the answer to the text `ids` behind a memory, as a backend's `answer` has them, without end until
        the step of an end token. What is drawn by `choose` is answered alone. Takes the model's lock by itself.
        """
        if choose is not None:
            steps = self._model.backend.answer(memory.state, ids, memory.position, choose)
            while True:
                with self._model.lock:
                    step = next(steps)
                yield step
        batch, number = self._join(memory, ids)
        try:
            while True:
                yield batch.step(number)
        finally:
            batch.leave(number)

    def _join(self, memory: AudioMemory, ids: list[int]) -> tuple[_Batch, int]:
        with self._guard:
            batch = self._open.get(id(memory))
            if batch is None:
                batch = self._open[id(memory)] = _Batch(self._model, memory, self._close)
            return batch, batch.join(ids)

    def _close(self, batch: _Batch) -> None:
        """Nobody joins it any more."""
        with self._guard:
            if self._open.get(id(batch.memory)) is batch:
                del self._open[id(batch.memory)]


class _Batch:
    def __init__(self, model: SpeechModel, memory: AudioMemory, close: Callable[[_Batch], None]):
        self.memory = memory  # it lives as long as its identity is used
        self._model, self._close = model, close
        self._texts: list[list[int]] = []
        self._taken: dict[int, deque[Step]] = {}  # by text: steps that wait for its asker; of those who are still here
        self._turn = FairLock()  # one asker at a time takes steps
        self._steps: Generator[dict[int, Step]] | None = None
        self._error: BaseException | None = None

    def join(self, ids: list[int]) -> int:
        """-> the text's number. Before the first step only, which `Together` sees to."""
        self._texts.append(ids)
        self._taken[len(self._texts) - 1] = deque()
        return len(self._texts) - 1

    def step(self, number: int) -> Step:
        """The next step of a text; what the backend raises, it raises for every asker."""
        with self._turn:
            if not self._taken[number]:
                self._compute()
            return self._taken[number].popleft()

    def _compute(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            with self._model.lock:
                if self._steps is None:
                    self._close(self)
                    self._steps = self._begin()
                steps = next(self._steps)
        except BaseException as error:
            self._error = error
            raise
        for number, step in steps.items():
            if (taken := self._taken.get(number)) is not None:
                taken.append(step)

    def _begin(self) -> Generator[dict[int, Step]]:
        """The steps of those who are still here, by their numbers."""
        backend, memory, numbers = self._model.backend, self.memory, list(self._taken)
        if len(numbers) == 1:
            return (
                {numbers[0]: step} for step in backend.answer(memory.state, self._texts[numbers[0]], memory.position)
            )
        texts = [self._texts[number] for number in numbers]
        together = backend.answer_together(memory.state, texts, memory.position, self._model.prompt.end_ids)
        return ({numbers[n]: step for n, step in steps.items()} for steps in together)

    def leave(self, number: int) -> None:
        """The text's asker wants no more; with the last one the batch ends. Whoever computes a step is not the last."""
        del self._taken[number]
        if not self._taken:
            self._close(self)
            self._steps = None
