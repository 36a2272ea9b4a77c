"""Server-sent events as OpenAI's clients read them: JSON objects, comments while nothing happens, errors in their shape.

It knows the wire and its end, not what the events say.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Receive, Scope, Send

from server.errors import refusal

LOG = logging.getLogger(__name__)
SECONDS_OF_SILENCE = 10.0  # then a comment: a proxy or a client must not think that nobody is there
DONE = format_sse_event(data_str="[DONE]")


class EventStream(StreamingResponse):
    """Sends each object of `events` as an event, then [DONE]. `on_end` is called when it is over, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], on_end: Callable[[], None]):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second: nginx must not collect events
        super().__init__(encode(events), headers=headers)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


async def encode(events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    """Events as server-sent events, with a comment where nothing comes for long, so that no proxy closes the line."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            if not (await asyncio.wait({coming}, timeout=SECONDS_OF_SILENCE))[0]:
                yield KEEPALIVE_COMMENT
                continue
            if (event := coming.result()) is None:
                break
            yield format_sse_event(data_str=json.dumps(event))
            coming = asyncio.ensure_future(anext(events, None))
    except Exception as error:
        refused = refusal(error)
        if refused.status == 500:
            LOG.error("a stream failed", exc_info=error)
        yield format_sse_event(data_str=json.dumps(refused.body))
    finally:
        coming.cancel()
    yield DONE
