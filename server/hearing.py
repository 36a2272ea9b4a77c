"""One recording on its way to a memory, once for all requests that wait for it; it ends when the last has left.

It knows threads and who waits; how a recording is heard is library.py's subject.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import ApiError
from server.workers import Workers
from speech_xl.memory import AudioMemory


@dataclass(frozen=True)
class Kept:
    """A memory that may be asked, and under which name it can be had again."""

    memory: AudioMemory
    id: str | None  # None: it could not be kept
    reused: bool  # nothing was heard for this request
    warnings: tuple[str, ...] = ()


class Hearing:
    """`hear` runs on a thread of `workers`, once; it calls `check_wanted` often. `on_over` is called in the event loop."""

    def __init__(self, workers: Workers, hear: Callable[[Hearing], Kept], on_over: Callable[[], None]):
        self._stopped = threading.Event()
        self._on_over = on_over
        self.seats = 0
        self.begun = asyncio.get_running_loop().create_future()  # done when something has been heard
        self.future = workers.submit(lambda: hear(self))
        self.done = asyncio.wrap_future(self.future)

    def stop(self) -> None:
        """It is over, or nobody waits for it any more."""
        self._stopped.set()
        self.future.cancel()
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())  # said to nobody
        self._on_over()

    def check_wanted(self) -> None:
        """From the thread, whenever something has been heard: ApiError if nobody wants the rest."""
        if self._stopped.is_set():
            raise _stopped()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self.begun.get_loop().call_soon_threadsafe(self._say_begun)

    def _say_begun(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)


class Seat:
    """One request's claim on a hearing. `close` gives it up; it may be called twice, from the event loop."""

    def __init__(self, hearing: Hearing):
        self._hearing = hearing
        self._is_left = False
        hearing.seats += 1

    async def begun(self, seconds: float) -> None:
        """Until something has been heard, or so many seconds have passed; raises what it has failed with by then."""
        done = self._hearing.done
        await asyncio.wait({done, self._hearing.begun}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            await self.result()

    async def result(self) -> Kept:
        """The memory, when all has been heard; raises what listening raised."""
        done = self._hearing.done
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if done.cancelled():  # in line, by the server's end: who has a seat did not do it
                raise _stopped() from None
            raise

    def close(self) -> None:
        """Leave; a recording that nobody waits for any more is no longer heard."""
        if not self._is_left:
            self._is_left = True
            self._hearing.seats -= 1
            if not self._hearing.seats:
                self._hearing.stop()


def _stopped() -> ApiError:
    """To whoever still waits; where nobody does, nobody reads it."""
    return ApiError(503, "The server is being stopped; try again later.", "stopped", headers={"Retry-After": "10"})
