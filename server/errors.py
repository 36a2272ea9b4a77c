"""Refusals in OpenAI's shape: a status, one sentence, and a code that programs can branch on.

Every way in which a request can fail ends here. A defect of the server keeps its traceback in the log and shows the
client none of it.
"""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from speech_xl.errors import (
    MemoryFileError,
    OutputError,
    QuestionError,
    RecordingError,
    ScheduleError,
    SpeechXLError,
)

LOG = logging.getLogger(__name__)
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {
    RecordingError: "invalid_audio",
    MemoryFileError: "invalid_memory",
    QuestionError: "invalid_question",
    ScheduleError: "invalid_compression",
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, an account's share of it, one file
PARTS = ("text", "input_audio", "audio_url")  # the types that a message's part may have
TYPES_TRIED = ("str", "int", "float", "list[str]", "parts")  # names of pydantic's, and a tag of fields.py
REASONS = {  # in place of pydantic's words for its own notions
    "union_tag_invalid": f"A part's type must be one of {', '.join(PARTS)}",
    "union_tag_not_found": f"A part needs a type: {', '.join(PARTS)}",
    "extra_forbidden": "There is no such field; leave it out",
    "missing": "This field is needed",
    "too_short": "At least one is needed",
}
LONGEST_ECHO = 200  # characters
CLIENT_LEFT = 499  # nobody reads it; it is what the metrics show
FAILED = "The server failed; its log says why. Try again, and tell whoever runs it if it happens again."


class ApiError(Exception):
    """A request that is refused: HTTP status, sentence, code, and the field that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response, in OpenAI's shape."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(error: Exception) -> ApiError:
    """What a client is told of an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in NO_ROOM):
        return ApiError(507, "The server's disk has no room for this; try again later.", "no_space")
    if isinstance(error, SpeechXLError):
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), None)
        return ApiError(400 if code else 500, str(error), code)
    if isinstance(error, ClientDisconnect):
        return ApiError(CLIENT_LEFT, "The client left.")
    if isinstance(error, ValidationError):
        return invalid_fields(error)
    if isinstance(error, HTTPException):
        said = error.detail if error.status_code != HTTPStatus.NOT_FOUND else "There is nothing at this address"
        return ApiError(error.status_code, f"{str(said).rstrip('.')}.", headers=dict(error.headers or {}))
    return ApiError(500, FAILED)


def invalid_fields(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body, without the value, which may be an hour of base64."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = shortened(".".join(fields_of(first["loc"])))
    reason = REASONS.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
    reason = shortened(reason.rstrip("."))
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body cannot be read as JSON: {reason}.", "invalid_json")
    return ApiError(400, f"{where}: {reason}." if where else f"{reason}.", "invalid_value", where or None)


def fields_of(place: tuple[int | str, ...]) -> list[str]:
    """The names and numbers of a body's fields on the way to a place in it; pydantic also names which type it tried."""
    names: list[str] = []
    for at, part in enumerate(place):
        is_type = part in TYPES_TRIED or (at > 0 and part in PARTS and isinstance(place[at - 1], int))
        if not is_type:
            names.append(str(part))
    return names


def shortened(text: str) -> str:
    """A client's own words come back in what is said of them, and may be long."""
    return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]} ..."


def respond(error: Exception) -> JSONResponse:
    """The response for any exception."""
    refused = refusal(error)
    return JSONResponse(refused.body, refused.status, refused.headers)


def add_handlers(app: FastAPI) -> None:
    """Let every exception of an endpoint become a response in OpenAI's shape."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return respond(error)

    async def handle_disk(request: Request, error: OSError) -> JSONResponse:
        if error.errno not in NO_ROOM:
            raise error  # a defect: its traceback belongs into the log
        return respond(error)

    app.add_exception_handler(OSError, handle_disk)
    for kind in (ApiError, SpeechXLError, ValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, handle)
