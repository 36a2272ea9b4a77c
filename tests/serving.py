"""A server in this process for tests: real HTTP on a free port, the official client, and recordings to send."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import uvicorn
from openai import OpenAI

from server.app import build_app
from server.service import Service
from server.settings import Settings
from space.shelf import Shelf
from speech_xl.model import SpeechModel
from tests.tiny import sound

ORDERS = Path(__file__).parent.parent / "recipes" / "order_desk" / "example.ogg"
QUESTION, ANSWER = "What drink is order 36?", "house coffee"  # about the first seconds of ORDERS
ORDER_SECONDS = 9.0
LONGEST_WAIT = 60.0  # seconds, for a machine that is busy; nothing is measured


@dataclass(frozen=True)
class Server:
    url: str
    service: Service

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=LONGEST_WAIT)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def serving(model: SpeechModel, store: Path, has_page: bool = False, **limits: Any) -> Iterator[Server]:
    settings = Settings(store=store, **limits)
    app = build_app(model, settings)
    if has_page:
        from server.page import add_page  # gradio takes seconds to import

        app = add_page(app, model, settings, Shelf(store / "shelf"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.service)
        finally:
            server.should_exit = True
            thread.join()


def encoded(samples: np.ndarray, kind: str = "WAV", rate: int = 16_000) -> bytes:
    """A sound file's bytes."""
    file = io.BytesIO()
    sf.write(file, samples, rate, format=kind)
    return file.getvalue()


def order() -> bytes:
    """A WAV file of the one order that QUESTION is about."""
    samples, rate = sf.read(ORDERS, dtype="float32", stop=round(ORDER_SECONDS * sf.info(ORDERS).samplerate))
    return encoded(samples, rate=rate)


def talk(seconds: float = 3.0, seed: int = 0) -> bytes:
    """A WAV file that nobody has heard before, if the seed is new."""
    return encoded(sound(seconds, seed))


def input_audio(data: bytes, kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def messages(question: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """One user's message."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def wait_until(happened: Any) -> None:
    """Until `happened()` is true; AssertionError if it never is."""
    done = threading.Event()
    for _ in range(round(LONGEST_WAIT / 0.02)):
        if happened():
            return
        done.wait(0.02)
    raise AssertionError("it did not happen")
