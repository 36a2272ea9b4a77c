"""A lock that is given in the order in which it was asked for.

threading.Lock may go again and again to one thread that lets go of it and takes it back at once, as listening
does interval after interval; whoever asks a question meanwhile would wait for the recording's end.
"""

from __future__ import annotations

import threading
from collections import deque


class FairLock:
    """Use as `with lock:`. Not reentrant."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()  # each is released when its owner's turn comes
        self._held = False

    @property
    def is_held(self) -> bool:
        """Whether somebody has it now."""
        return self._held

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # ctrl-c while waiting: the turn must not be left to nobody
            with self._guard:
                given = turn not in self._waiting
                if not given:
                    self._waiting.remove(turn)
            if given:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False
