"""Request bodies, read within a byte limit onto disk: however large one is, it takes no memory before it is looked at.

It knows HTTP and bytes; what stands in them is others' subject.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from fastapi import Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.types import Message

from server.errors import ApiError
from server.settings import MIB
from speech_xl.schedule import format_bytes

LONGEST_PAUSE = 60.0  # seconds without a byte, after which a sender is given up
IN_MEMORY = MIB  # bytes of a body that are kept off the disk
MOST_FIELDS, LONGEST_FIELD = 32, 64 * 1024  # of a form, files not counted


def too_large(limit: int) -> ApiError:
    """The refusal of a body above the limit in bytes."""
    return ApiError(413, f"The body is larger than {format_bytes(limit)}, the limit here.", "body_too_large")


class LimitedRequest(Request):
    """A request whose body may have `limit` bytes: ApiError 413 before a byte is read if it declares more, else when
    it turns out to, and 408 if its sender pauses too long.
    """

    def __init__(self, request: Request, limit: int):
        self._limit, self._taken = limit, 0
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large(limit)
        super().__init__(request.scope, self._limited_receive)
        self._inner_receive = request.receive

    async def _limited_receive(self) -> Message:
        try:
            async with asyncio.timeout(LONGEST_PAUSE):
                message = await self._inner_receive()
        except TimeoutError:
            raise ApiError(
                408, f"No data of the request body arrived for {LONGEST_PAUSE:g} s; send it again.", "slow_body"
            ) from None
        self._taken += len(message.get("body", b""))
        if self._taken > self._limit:
            raise too_large(self._limit)
        return message


@contextlib.asynccontextmanager
async def whole_body(request: Request, limit: int) -> AsyncIterator[tuple[IO[bytes], bool]]:
    """The body as a file at its beginning, and whether it is a large one, which lies on disk."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
        async for chunk in LimitedRequest(request, limit).stream():
            if file.tell() + len(chunk) > IN_MEMORY:
                await asyncio.to_thread(file.write, chunk)
            else:
                file.write(chunk)
        is_large = file.tell() > IN_MEMORY
        file.seek(0)
        yield file, is_large


@contextlib.asynccontextmanager
async def form_body(request: Request, limit: int) -> AsyncIterator[FormData]:
    """The body as a multipart form, its file on disk where it is large."""
    limited = LimitedRequest(request, limit)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, "Send a form (multipart/form-data) with the file in its field `file`.", "invalid_form")
    try:
        form = await limited.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD)
    except HTTPException as error:
        reason = str(error.detail).rstrip(".")
        raise ApiError(
            400, f"The form cannot be read ({reason}); send one file and short fields.", "invalid_form"
        ) from None
    try:
        yield form
    finally:
        await form.close()
