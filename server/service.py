"""What every route needs of one server: model, settings, keys, memories, threads, counters."""

from __future__ import annotations

import asyncio

from fastapi import Request

from server.auth import Keys
from server.errors import ApiError
from server.library import Library
from server.metrics import Metrics
from server.settings import Settings
from server.workers import Workers
from speech_xl.model import SpeechModel


class Service:
    """One per application, in `app.state.service`. OutputError if memories cannot be kept where they should be."""

    def __init__(self, model: SpeechModel, settings: Settings):
        self.model, self.settings = model, settings
        self.keys = Keys(settings.keys, settings.is_private)
        self.metrics = Metrics()
        self.listening = Workers("listening", settings.listening, settings.waiting)
        self.answering = Workers("answering", settings.answering, settings.waiting)
        self.library = Library(model, settings, self.listening, self.metrics)
        self.large_bodies = asyncio.Semaphore(1)  # bodies of base64 are read into memory whole: one at a time
        gauge, library = self.metrics.gauge, self.library
        gauge("listening_waiting", "Recordings that wait to be heard.", lambda: self.listening.in_line)
        gauge("answering_waiting", "Answers and transcripts that wait.", lambda: self.answering.in_line)
        gauge("resident_bytes", "Keys and values of memories held ready.", lambda: library.resident.bytes)
        gauge("store_bytes", "Memories on disk.", lambda: library.store.bytes)

    def check_model(self, name: str) -> None:
        """ApiError 404 for any other model than the one that is loaded."""
        known = self.model.config.name
        if name != known:
            raise ApiError(404, f"There is no model {name[:60]!r} here; ask {known!r}.", "model_not_found", "model")

    async def close(self) -> None:
        """All work has ended and its files are gone: the process may die of the signal that ends the server."""
        self.library.close()
        await asyncio.to_thread(self.listening.close)
        await asyncio.to_thread(self.answering.close)


def service_of(request: Request) -> Service:
    """As a dependency of a route."""
    return request.app.state.service


def owner_of(request: Request) -> str:
    """As a dependency of a route: whose request it is; ApiError 401 without a key where keys are needed."""
    return service_of(request).keys(request)
