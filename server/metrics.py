"""Counters for Prometheus, and the middleware that counts requests and turns away those beyond the limit.

No label holds a key, a name or anything else of a client's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLIENT_LEFT, respond
from server.workers import too_busy

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
METHODS = ("GET", "HEAD", "POST", "DELETE")


class Metrics:
    """One server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter(
            "requests", "Requests by route, method and status.", ["route", "method", "status"]
        )
        self.request_seconds = Histogram(
            "speech_xl_request_seconds",
            "Time from a request's first byte to its answer's last.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge("speech_xl_requests_in_flight", "Requests being worked on.", registry=self.registry)
        self.heard_seconds = self._counter("heard_seconds", "Seconds of recordings heard.")
        self.memories = self._counter("memories", "Memories used, by how they were obtained.", ["how"])
        self.answer_tokens = self._counter("answer_tokens", "Tokens of answers and transcripts.")

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"speech_xl_{name}", text, labels or [], registry=self.registry)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is asked for when it is read: `value` is called without arguments."""
        Gauge(f"speech_xl_{name}", text, registry=self.registry).set_function(value)


class Traffic:
    """ASGI middleware: counts requests, names each in x-request-id, and answers 429 beyond `most` at a time."""

    def __init__(self, app: ASGIApp, metrics: Metrics, most: int):
        self._app, self._metrics, self._most = app, metrics, most
        self._bodies = 0  # requests with a body; the others are short

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_body, started, status = scope["method"] == "POST", time.monotonic(), CLIENT_LEFT

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", f"req_{uuid.uuid4().hex}".encode())]
            await send(message)

        self._metrics.in_flight.inc()
        self._bodies += has_body
        try:
            if has_body and self._bodies > self._most:
                await respond(too_busy("Too many requests are here already", 5))(scope, receive, count)
            else:
                await self._app(scope, receive, count)
        except Exception:
            status = 500
            raise
        finally:
            self._bodies -= has_body
            self._metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - started)
