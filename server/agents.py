"""/mcp: the same memories, questions and transcripts for agents, by the Model Context Protocol.

Streamable HTTP without sessions: each call carries its key, and what one call has heard the next one finds by its
memory's id. The protocol itself is the SDK's subject; what the tools do is that of the other routes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import Tool, ToolAnnotations
from pydantic import Field
from starlette.types import Message, Receive, Scope, Send

import speech_xl
from server.bodies import LimitedRequest
from server.chat import extras
from server.errors import ApiError, refusal
from server.fields import ChatMessage, ChatRequest, Extras, Strict
from server.job import Job
from server.memories import describe
from server.messages import conversation_of
from server.service import Service
from server.settings import MIB
from server.turn import Turn, open_source, source_of
from speech_xl.transcript import transcribe

PATH = "/mcp"
MOST_BYTES = 64 * MIB  # of one call, which is read at once; larger recordings go to /v1/memories, or have an address
LOG = logging.getLogger(__name__)
INSTRUCTIONS = (
    "Listens to recordings of any length and answers questions about what was said. Every answer names the memory that it "
    "comes from; give its id in place of the recording to ask again without listening again."
)


class Source(Extras):
    """What each tool about one recording takes."""

    recording: str | None = Field(
        None, description="http(s) address or data: URL of a recording (audio or video), or of a .sxl memory file"
    )


class Question(Source):
    """Answer one question about a recording, with the seconds at which the answer is heard."""

    question: str = Field(description="one question in plain words")


class Transcript(Source):
    """What is said in a recording, with times."""


class Nothing(Strict):
    """The recordings that have been heard, newest first, each with the id of its memory."""


async def ask(service: Service, owner: str, asked: Question) -> dict[str, Any]:
    """Answer the tool that asks a recording or a memory."""
    chat = ChatRequest(
        model=service.model.config.name, messages=[ChatMessage(role="user", content=asked.question)], speech_xl=asked
    )
    turn = Turn(service, owner, chat, conversation_of(chat.messages))
    try:
        await turn.open(await _source(service, asked))
        answer: Any = None
        async for piece in turn.pieces():
            answer = piece  # the last one is the Answer
        return {"answer": answer.answer, **extras(turn, answer)}
    finally:
        turn.job.close()


async def write_down(service: Service, owner: str, asked: Transcript) -> dict[str, Any]:
    """Answer the tool that transcribes one."""
    job = Job(service, owner, asked)
    try:
        await job.open(await open_source(service, await _source(service, asked)))
        segments = [s async for s in job.results(lambda memory: transcribe(service.model, memory, *asked.span))]
        said = [dataclasses.asdict(segment) for segment in segments]
        return {"segments": said, "memory": job.kept.id, "warnings": [*job.kept.warnings, *job.kept.memory.warnings]}
    finally:
        job.close()


async def list_memories(service: Service, owner: str, _: Nothing) -> dict[str, Any]:
    """Answer the tool that lists the memories of the caller's key."""
    entries = await asyncio.to_thread(service.library.store.entries, owner)
    return {"memories": [describe(service, entry) for entry in entries]}


async def _source(service: Service, asked: Source) -> Any:
    if asked.recording is None:
        return None
    return await asyncio.to_thread(source_of, asked.recording, service.settings.upload_bytes)


Work = Callable[[Service, str, Any], Awaitable[dict[str, Any]]]
TOOLS: dict[str, tuple[type[Strict], Work]] = {
    "ask": (Question, ask),
    "transcribe": (Transcript, write_down),
    "list_memories": (Nothing, list_memories),
}


def tools() -> list[Tool]:
    """The tools as an agent sees them; what they take is described by their classes."""
    reading = ToolAnnotations(readOnlyHint=True)
    return [
        Tool(name=name, description=takes.__doc__, inputSchema=takes.model_json_schema(), annotations=reading)
        for name, (takes, _) in TOOLS.items()
    ]


async def call(service: Service, owner: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a tool says; ApiError, with one sentence for the agent, for whatever goes wrong."""
    if name not in TOOLS:
        raise ApiError(404, f"There is no tool {name[:40]!r} here; take {', '.join(TOOLS)}.")
    takes, work = TOOLS[name]
    try:
        return await work(service, owner, takes.model_validate(arguments))
    except Exception as error:
        refused = refusal(error)
        if refused.status == 500:
            LOG.error("a tool failed", exc_info=error)
        raise refused from None


class Agents:
    """An ASGI application for PATH. `manager.run()` must be entered while it is served."""

    def __init__(self, service: Service):
        self._service = service
        server: Server[Any, Request] = Server("Speech-XL", speech_xl.__version__, INSTRUCTIONS)

        @server.list_tools()
        async def list_tools() -> list[Tool]:
            return tools()

        @server.call_tool(validate_input=False)  # fields.py does, and says what is wrong in one sentence
        async def call_tool(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
            return await call(service, service.keys(server.request_context.request), name, arguments)

        self._limit = min(MOST_BYTES, service.settings.json_bytes)
        self.manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=self._limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ApiError for what is refused before the protocol sees it, in the shapes of the other routes."""
        request = Request(scope, receive)
        self._service.keys(request)
        body = await LimitedRequest(request, self._limit).body()
        read = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(read, None) or await receive()

        await self.manager.handle_request(scope, replay, send)
