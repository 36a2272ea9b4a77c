"""Hostile uploads to the server in this process: names, descriptions of memories, pickles, days of silence."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from reliability.hostile_files import HOURS, NAMES, Payload
from server.app import build_app
from server.settings import Settings
from speech_xl.conversation import Listening
from speech_xl.memory import save_memory
from speech_xl.model import SpeechModel
from tests.serving import input_audio, messages, talk

TEXTS = (
    "../../x",
    "\ud800",
    "a\0b",
    "<img src=x onerror=alert(1)>.wav",
    "a\r\nSet-Cookie: x=1",
    "'\"; rm -rf /",
    "a" * 5000,
    "",
)


def memory_with(model: SpeechModel, path: Path, text: str) -> bytes:
    """A memory file whose description says `text` wherever it may."""
    listening = Listening(model, path.with_suffix(".wav"))
    for _ in listening:
        pass
    memory = listening.memory
    source = dataclasses.replace(memory.recording, path=text, sha256=text)
    save_memory(dataclasses.replace(memory, recording=source, model=text, warnings=(text,)), path, model)
    return path.read_bytes()


def server_findings(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Send everything; a sentence for each answer that is none."""
    folder.mkdir()
    model = SpeechModel.load(str(checkpoint), "torch")
    (folder / "hostile.wav").write_bytes(talk(1.0))
    with TestClient(build_app(model, Settings(store=folder / "store", longest_answer=4))) as client:

        def call(
            what: str, method: str, url: str, expected: range | int = range(200, 500), **more: Any
        ) -> Iterator[str]:
            try:
                answer = client.request(method, url, **more)
            except Exception as error:
                yield f"{what}, {method} {url}: {type(error).__name__}: {error}"
                return
            if answer.status_code not in (range(expected, expected + 1) if isinstance(expected, int) else expected):
                yield f"{what}, {method} {url}: status {answer.status_code}: {answer.text[:300]}"
            if "set-cookie" in answer.headers:
                yield f"{what}, {method} {url}: a header of the client's own"

        for name in NAMES:
            upload = {"file": (name.encode("utf-8", "surrogateescape").decode("latin-1"), talk(0.5), "audio/wav")}
            yield from call(f"an upload named {name!r}", "POST", "/v1/audio/transcriptions", files=upload)
        for text in TEXTS:
            data = memory_with(model, folder / "hostile.sxl", text)
            yield from call(f"a memory of {text[:40]!r}", "POST", "/v1/memories", files={"file": ("a.sxl", data)})
        yield from call("memories", "GET", "/v1/memories", 200)
        for path in list((folder / "store").rglob("mem_*.sxl")):
            for url in (f"/v1/memories/{path.stem}", f"/v1/memories/{path.stem}/content"):
                yield from call("a hostile memory", "GET", url, 200)
            extra = {"speech_xl": {"memory": path.stem}, "model": model.config.name, "messages": messages("what?")}
            yield from call("a hostile memory", "POST", "/v1/chat/completions", 200, json=extra)
        pickled = pickle.dumps(Payload(folder / "canary"))
        yield from call("a pickle", "POST", "/v1/memories", 400, files={"file": ("a.sxl", pickled)})
        day = silent_day(folder / "day.flac")
        yield from call(f"{HOURS} h in {len(day)} bytes", "POST", "/v1/memories", 413, files={"file": ("a.flac", day)})
        body = {"model": model.config.name, "messages": messages("what?", input_audio(day, "flac"))}
        yield from call(f"{HOURS} h in base64", "POST", "/v1/chat/completions", 413, json=body)
        deep = "[" * 100_000
        for text in (deep, json.dumps({"model": deep}), '{"a":' * 50_000):
            yield from call("nested JSON", "POST", "/v1/chat/completions", range(400, 500), content=text)
        for identifier in ("..", "%2e%2e%2fx", "mem_" + "0" * 31 + "%2f%2e%2e", "mem_%0a"):
            yield from call("a memory's name", "GET", f"/v1/memories/{identifier}", range(400, 500))
    if (folder / "canary").exists():
        yield "the server unpickled a file"


def silent_day(path: Path) -> bytes:
    """A FLAC file of HOURS of silence."""
    import numpy as np
    import soundfile as sf

    with sf.SoundFile(path, "w", 1000, 1, "PCM_16") as file:
        for _ in range(HOURS):
            file.write(np.zeros(3600 * 1000, np.int16))
    return path.read_bytes()
