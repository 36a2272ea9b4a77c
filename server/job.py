"""One client's work on one memory: found or heard first, then read on a thread, and over when the client leaves.

It knows memories and threads; what is asked of a memory is its callers' subject.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from server.errors import ApiError
from server.fields import Extras
from server.hearing import Kept, Seat
from server.library import Compression
from server.recordings import Recording
from server.service import Service
from server.streaming import SECONDS_OF_SILENCE
from server.workers import ThreadStream
from speech_xl.memory import AudioMemory
from speech_xl.slices import check_span

T = TypeVar("T")


class Job:
    """`open`, `begin` where a stream comes of it, then `memory` or `results`, once each.

    `close` ends whatever is under way, at any time, from the event loop.
    """

    def __init__(self, service: Service, owner: str, extras: Extras):
        self._service, self._owner, self._extras = service, owner, extras
        self._seat: Seat | None = None
        self._kept: Kept | None = None
        self._stream: ThreadStream[Any] | None = None

    async def open(self, file: Recording | None) -> None:
        """Everything that can be refused before something is heard or read; the file is closed in any case."""
        extras, library = self._extras, self._service.library
        if file is not None and extras.memory is not None:
            file.close()
            raise ApiError(
                400, "Send a recording or the id of a memory, not both.", "invalid_audio", "speech_xl.memory"
            )
        if file is not None:
            compression = Compression(extras.ratio, extras.budget)
            found = await library.receive(self._owner, file, compression, extras.span)
        elif extras.memory is not None:
            found = await library.find(self._owner, extras.memory)
        else:
            raise ApiError(400, "There is no recording; send one, or the id of a memory in speech_xl.", "no_audio")
        if isinstance(found, Seat):
            self._seat = found
        else:
            check_span(*extras.span, found.memory.seconds)
            self._service.answering.admit()
            self._kept = found

    async def begin(self) -> None:
        """Wait a little, so that what is wrong with a recording can still be said by the status of a stream."""
        if self._seat is not None:
            await self._seat.begun(SECONDS_OF_SILENCE)

    async def memory(self) -> Kept:
        """The memory, once the recording has been heard."""
        if self._kept is None:
            assert self._seat is not None  # `open` has found one of the two
            self._kept = await self._seat.result()
            self._seat.close()
        return self._kept

    @property
    def kept(self) -> Kept:
        """The memory that has been waited for."""
        assert self._kept is not None
        return self._kept

    async def results(self, read: Callable[[AudioMemory], Iterator[T]]) -> AsyncIterator[T]:
        """What the generator `read` yields of the memory, on a thread."""
        memory = (await self.memory()).memory
        self._stream = ThreadStream(self._service.answering, lambda: read(memory))
        async for item in self._stream:
            yield item

    def close(self) -> None:
        """End what the request waits for and what it computes; any number of times."""
        if self._seat is not None:
            self._seat.close()
        if self._stream is not None:
            self._stream.close()
