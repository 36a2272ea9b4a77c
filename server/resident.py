"""Memories in RAM: those used last, under a byte budget. It knows no disk and no clients."""

from __future__ import annotations

import threading
from collections import OrderedDict

from speech_xl.memory import AudioMemory

Key = tuple[str, str]  # owner, id


class Resident:
    """Safe from any thread. A memory that is dropped lives on for whoever is asking it."""

    def __init__(self, budget: int):
        self._budget, self.bytes = budget, 0
        self._lock = threading.Lock()
        self._memories: OrderedDict[Key, AudioMemory] = OrderedDict()

    def get(self, key: Key) -> AudioMemory | None:
        """A memory that is in RAM, which is then the one used last; None if it is not."""
        with self._lock:
            if key in self._memories:
                self._memories.move_to_end(key)
            return self._memories.get(key)

    def put(self, key: Key, memory: AudioMemory) -> None:
        """Keep a memory; those used longest ago leave until all fit the budget in bytes."""
        with self._lock:
            self._remove(key)
            self._memories[key] = memory
            self.bytes += memory.bytes
            while self.bytes > self._budget:
                self.bytes -= self._memories.popitem(last=False)[1].bytes

    def drop(self, key: Key) -> None:
        """Forget a memory, if it is there."""
        with self._lock:
            self._remove(key)

    def _remove(self, key: Key) -> None:
        if (memory := self._memories.pop(key, None)) is not None:
            self.bytes -= memory.bytes
