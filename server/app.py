"""The application: routes, middleware and handlers around one model, for any ASGI server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from server import chat, memories, status, transcriptions
from server.agents import PATH, Agents
from server.errors import add_handlers
from server.metrics import Traffic
from server.service import Service
from server.settings import Settings
from speech_xl.model import SpeechModel


def build_app(model: SpeechModel, settings: Settings) -> FastAPI:
    """OutputError if memories cannot be kept in settings.store."""
    service = Service(model, settings)
    agents = Agents(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with agents.manager.run():
            try:
                yield
            finally:
                await service.close()

    # No pages of documentation: they would fetch scripts from elsewhere.
    app = FastAPI(title="Speech-XL", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    add_handlers(app)
    app.add_middleware(Traffic, metrics=service.metrics, most=settings.in_flight)
    for part in (chat, transcriptions, memories, status):
        app.include_router(part.router)
    app.router.add_route(PATH, agents, methods=["POST"], include_in_schema=False)
    return app
