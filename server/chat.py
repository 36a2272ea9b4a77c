"""POST /v1/chat/completions: a question about a recording, answered whole or word by word, in OpenAI's shapes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from server.bodies import whole_body
from server.fields import ChatRequest
from server.service import Service, owner_of, service_of
from server.streaming import EventStream
from server.turn import Turn, read_request
from server.workers import while_connected
from speech_xl.asking import Answer

router = APIRouter()


@router.post("/v1/chat/completions")
async def complete(
    request: Request, service: Annotated[Service, Depends(service_of)], owner: Annotated[str, Depends(owner_of)]
) -> Response:
    """Answer POST /v1/chat/completions, streamed or whole."""
    async with (
        whole_body(request, service.settings.json_bytes) as (body, is_large),
        service.large_bodies if is_large else contextlib.nullcontext(),
    ):
        asked, conversation, source = await asyncio.to_thread(read_request, service, body)
    turn = Turn(service, owner, asked, conversation)
    shape = Shape(service, asked)
    try:
        await while_connected(request, turn.open(source))
        if not asked.stream:
            return JSONResponse(await while_connected(request, shape.whole(turn)))
        await while_connected(request, turn.job.begin())
    except BaseException:
        turn.job.close()
        raise
    return EventStream(shape.chunks(turn), turn.job.close)


class Shape:
    """What one completion looks like on the wire."""

    def __init__(self, service: Service, asked: ChatRequest):
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model.config.name,
            "system_fingerprint": f"fp_{service.model.fingerprint[:12]}",
        }
        options = asked.stream_options
        self._shows_usage = options is not None and bool(options.include_usage)

    async def whole(self, turn: Turn) -> dict[str, Any]:
        """The response of a question that is not streamed, once its answer is complete."""
        answer: Any = None
        async for piece in turn.pieces():
            answer = piece  # the last one is the Answer
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.answer, "refusal": None},
            "logprobs": None,
            "finish_reason": answer.finish_reason,
        }
        about = {"usage": usage(turn, answer), "speech_xl": extras(turn, answer)}
        return {"object": "chat.completion", **self._head, "choices": [choice], **about}

    async def chunks(self, turn: Turn) -> AsyncGenerator[dict[str, Any], None]:
        """The role, each piece, why it ended and what only we have; the usage, if it was asked for."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for piece in turn.pieces():
            if isinstance(piece, Answer):
                yield self._chunk({}, piece.finish_reason) | {"speech_xl": extras(turn, piece)}
                if self._shows_usage:
                    yield self._chunk(None) | {"usage": usage(turn, piece)}
            else:
                yield self._chunk({"content": piece})

    def _chunk(self, delta: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {"object": "chat.completion.chunk", **self._head, "choices": [] if delta is None else [choice]}
        return chunk | ({"usage": None} if self._shows_usage else {})


def usage(turn: Turn, answer: Answer) -> dict[str, Any]:
    """Positions that the decoder read and wrote. A memory's slots are the audio's tokens; reused ones are cached."""
    memory = turn.job.kept.memory
    read, cached = memory.slots + turn.question_tokens, memory.slots if turn.job.kept.reused else 0
    return {
        "prompt_tokens": read,
        "completion_tokens": answer.tokens,
        "total_tokens": read + answer.tokens,
        "prompt_tokens_details": {
            "cached_tokens": cached,
            "audio_tokens": len(memory.spans),
            "text_tokens": read - len(memory.spans),
        },
        "input_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def extras(turn: Turn, answer: Answer) -> dict[str, Any]:
    """What we add under "speech_xl": the memory's id, its ratio, evidence in seconds, warnings."""
    memory = turn.job.kept.memory
    return {
        "memory": turn.job.kept.id,
        "reused": turn.job.kept.reused,
        "ratio": memory.ratio,
        "seconds_heard": memory.seconds,
        "evidence": [dataclasses.asdict(e) for e in answer.evidence],
        "warnings": turn.warnings(answer),
    }
