"""Work on threads, for requests that live in an event loop: a bounded line in front of it, and an end to it when the
one who asked has left.

It knows threads, lines and requests; not what the work is.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.errors import ApiError

T = TypeVar("T")
LONGEST_RETRY = 300  # seconds that a client is told to wait at most


class Workers:
    """Threads for one kind of work, `at_once` of them; `waiting` more jobs may stand in line before `admit` refuses."""

    def __init__(self, what: str, at_once: int, waiting: int):
        self._what, self._at_once, self._most = what, at_once, at_once + waiting
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix=f"speech-xl-{what}")
        self._lock = threading.Lock()
        self._usual_seconds = 1.0
        self.jobs = 0  # in work and in line

    @property
    def in_line(self) -> int:
        """Jobs that wait for a thread."""
        return max(0, self.jobs - self._at_once)

    def admit(self) -> None:
        """ApiError 429 if the line is full."""
        if self.jobs >= self._most:
            seconds = math.ceil(self._usual_seconds * (self.in_line + 1) / self._at_once)
            raise too_busy(f"Too many requests are waiting for {self._what}", seconds)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Puts a job in line, admitted or not: who was let in is not turned away halfway."""

        def timed() -> T:
            started = time.monotonic()
            try:
                return work()
            finally:
                self._usual_seconds += 0.2 * (time.monotonic() - started - self._usual_seconds)

        with self._lock:
            self.jobs += 1
        future = self._pool.submit(timed)
        future.add_done_callback(self._leave)
        return future

    def _leave(self, _: Future[T]) -> None:
        with self._lock:
            self.jobs -= 1

    def close(self) -> None:
        """Blocking. Nothing in line is begun, and what is in work, which its owner must stop, has ended."""
        self._pool.shutdown(cancel_futures=True)


def too_busy(reason: str, seconds: int) -> ApiError:
    """A refusal with Retry-After, in seconds."""
    seconds = min(max(1, seconds), LONGEST_RETRY)
    return ApiError(429, f"{reason}; try again in {seconds} s.", "too_busy", headers={"Retry-After": str(seconds)})


class ThreadStream(Generic[T]):
    """What an iterator yields on a thread, as an asynchronous iterator; an exception in it is raised here.

    `close` ends the work behind the step that it is in. It may be called at any time, from the event loop.
    """

    def __init__(self, workers: Workers, iterate: Callable[[], Iterator[T]]):
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._stopped = threading.Event()
        self._future = workers.submit(lambda: self._run(iterate))

    def _run(self, iterate: Callable[[], Iterator[T]]) -> None:
        try:
            if self._stopped.is_set():
                return
            with contextlib.closing(iterate()) as items:  # type: ignore[type-var]  # a generator ...
                # ... whose `finally` runs here, on its thread
                for item in items:
                    if self._stopped.is_set():
                        return
                    self._send("item", item)
            self._send("end", None)
        except BaseException as error:  # raised where it is awaited
            self._send("error", error)

    def _send(self, kind: str, item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(self._items.put_nowait, (kind, item))

    def close(self) -> None:
        """Let the thread stop at its next item; what waits in line is never begun."""
        self._stopped.set()
        self._future.cancel()  # out of the line

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            while True:
                kind, item = await self._items.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise item
                yield item
        finally:
            self.close()


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """The work's result. If the client leaves first, the work is cancelled and ClientDisconnect raised.

    The body must have been read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
