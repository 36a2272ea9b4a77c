"""Words recalled before anybody asks for them, while a model has nothing else to do.

A first question waits for the words of dozens of intervals; those that are known by then cost it nothing. It knows
memories and when a model is free; what recalling means is recall.py's subject.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from speech_xl.memory import AudioMemory
from speech_xl.recall import Interval, can_recall, intervals_between, recalled_words

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel

AT_ONCE = 8  # intervals: whoever asks meanwhile waits for one such batch
MOST_INTERVALS = 500  # of a memory; a longer one is left alone, as a question needs few of its intervals
PAUSE = 0.1  # seconds until a model that was busy is looked at again


class RecallAhead:
    """What one model recalls ahead, the memory that came last first. Safe from any thread; memories are not kept alive."""

    def __init__(self, model: SpeechModel):
        self._model = model
        self._guard = threading.Lock()
        self._memories: list[tuple[weakref.ref[AudioMemory], list[Interval]]] = []
        self._thread: threading.Thread | None = None

    def add(self, memory: AudioMemory) -> None:
        """Recall the words of a memory that somebody is likely to ask about; nothing where the checkpoint recalls none."""
        if not can_recall(self._model, memory) or memory.intervals > MOST_INTERVALS:
            return
        intervals = intervals_between(memory, 0.0, memory.seconds)
        with self._guard:
            self._memories.append((weakref.ref(memory), intervals))
            if self._thread is None:
                # Not a daemon: it may not be cut off in the middle of the backend's work when the program ends.
                self._thread = threading.Thread(target=self._work, name="speech-xl-recall")
                self._thread.start()

    def _work(self) -> None:
        try:
            while threading.main_thread().is_alive() and (work := self._next()) is not None:
                if self._model.lock.is_held:
                    del work  # it may be forgotten while others work
                    time.sleep(PAUSE)
                    continue
                for _ in recalled_words(self._model, *work):
                    pass
        except BaseException:
            with self._guard:
                self._thread = None  # who asks will hear of the error; another memory begins anew
            raise

    def _next(self) -> tuple[AudioMemory, list[Interval]] | None:
        """The next intervals to recall, and their memory; None if there are none, and then the thread is over."""
        with self._guard:
            while self._memories:
                held, intervals = self._memories[-1]
                memory = held()
                if memory is not None and (missing := [i for i in intervals if i.tokens not in memory.recalled]):
                    return memory, missing[:AT_ONCE]
                self._memories.pop()
            self._thread = None
        return None
