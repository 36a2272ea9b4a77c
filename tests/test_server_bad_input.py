"""Bad input: the right status, one sentence in OpenAI's shape, nothing kept of it, and a server that goes on."""

from __future__ import annotations

import base64
import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from server import bodies
from server.errors import add_handlers
from server.recordings import from_base64, safe_name
from speech_xl.model import SpeechModel
from tests.serving import LONGEST_WAIT, Server, encoded, input_audio, messages, serving, talk
from tests.tiny import sound

GOOD = {"model": "tiny", "messages": messages("a?", input_audio(talk(2.0))), "max_tokens": 2}


@pytest.fixture(scope="module")
def server(tiny_speech_model: SpeechModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tiny_speech_model, tmp_path_factory.mktemp("memories")) as server:
        yield server


@pytest.fixture(autouse=True)
def goes_on(server: Server) -> Iterator[None]:
    """After every refusal the next question is answered, and nobody is left behind."""
    yield
    assert httpx.post(f"{server.url}/v1/chat/completions", json=GOOD, timeout=LONGEST_WAIT).status_code == 200
    assert not server.service.library.hearings and server.service.listening.jobs == 0


def refused(server: Server, status: int, **request: Any) -> str:
    """The one sentence of a refusal."""
    answer = httpx.post(f"{server.url}/v1/chat/completions", timeout=LONGEST_WAIT, **request)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and list(answer.json()["error"]) == ["message", "type", "param", "code"]
    sentence = answer.json()["error"]["message"]
    assert (
        sentence.endswith((".", ".)"))
        and "Traceback" not in sentence
        and "/tmp" not in sentence
        and len(sentence) < 600
    )
    return sentence


def with_audio(data: str, kind: str = "wav") -> dict[str, Any]:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return GOOD | {"messages": messages("a?", part)}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


WAV = talk(2.0)


@pytest.mark.parametrize(
    ("data", "kind", "sentence"),
    [
        ("no base64!", "wav", "not valid base64"),
        (b64(WAV)[:-1], "wav", "not valid base64"),
        (b64(WAV)[:8] + "=" + b64(WAV)[8:], "wav", "not valid base64"),
        ("\N{SNOWMAN}" * 8, "wav", "not valid base64"),
        ("", "wav", "empty"),
        (b64(WAV), "mp3", "says mp3, but the bytes are wav"),
        (b64(encoded(sound(1.0), "FLAC")), "wav", "the bytes are flac"),
        (b64(encoded(sound(1.0), "MP3")), "m4a", "the bytes are mp3"),
        (b64(encoded(sound(1.0), "OGG")), "flac", "the bytes are ogg"),
        (b64(b"MZ" * 50), "wav", "none of the formats"),
        (b64(WAV), "exe", "must be one of wav, mp3, flac, ogg, m4a"),
        (b64(WAV[:44]), "wav", "audio.wav"),
        (b64(b"RIFF....WAVE" + b"x" * 500), "wav", "audio.wav"),
        (b64(talk(0.05)), "wav", "0.050 s"),
    ],
)
def test_audio_that_is_none(server: Server, data: str, kind: str, sentence: str) -> None:
    for stream in (False, True):
        assert sentence in refused(server, 400, json=with_audio(data, kind) | {"stream": stream})


@pytest.mark.parametrize(
    "url", ["data:audio/wav,abc", "data:audio/wav;base64", "data:;base64,%%%", "data:;base64," + b64(b"no")]
)
def test_data_urls_that_are_none(server: Server, url: str) -> None:
    part = {"type": "audio_url", "audio_url": {"url": url}}
    refused(server, 400, json=GOOD | {"messages": messages("a?", part)})


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"model": "gpt-4o"}, 404, "no model 'gpt-4o' here; ask 'tiny'"),
        ({"model": "x" * 10_000}, 404, "no model"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": None}, 400, "messages"),
        ({"messages": messages(" ", input_audio(WAV))}, 400, "no text"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "no text"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "no text"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "no text"),
        ({"messages": [{"role": "system", "content": "a?"}]}, 400, "user's"),
        ({"messages": messages("a?")}, 400, "no recording"),
        ({"messages": messages("x" * 5000, input_audio(WAV))}, 400, "5000 characters"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
        ({"messages": messages("a?", {"type": "image_url", "image_url": {"url": "x"}})}, 400, "type must be one of"),
        ({"messages": messages("a?", {"type": "x" * 100_000})}, 400, "type must be one of"),
        ({"messages": messages("a?", {"type": "input_audio"})}, 400, "input_audio"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "content"),
        ({"messages": [{"role": "assistant", "content": [input_audio(WAV)]}, *messages("a?")]}, 400, "user's messages"),
        ({"stream": "yes"}, 400, "stream"),
        ({"temperature": 2.5}, 400, "temperature: The temperature must be between 0 and 2"),
        ({"temperature": -0.1}, 400, "between 0 and 2"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p must be between 0 and 1"),
        ({"seed": 0.5}, 400, "seed"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"n": 2}, 400, "one answer"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"presence_penalty": 1.0}, 400, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, 400, "plain text"),
        ({"modalities": ["text", "audio"]}, 400, "modalities"),
        ({"speech_xl": {"ratio": 3}}, 400, "Ratio 3"),
        ({"speech_xl": {"ratio": "many"}}, 400, "not a ratio"),
        ({"speech_xl": {"ratio": 2**70}}, 400, "ratio"),
        ({"speech_xl": {"memory_budget": 1}}, 400, "too small"),
        ({"speech_xl": {"memory_budget": "much"}}, 400, "amount of memory"),
        ({"speech_xl": {"ratio": 8, "memory_budget": "1MiB"}}, 400, "not both"),
        ({"speech_xl": {"from": "soon"}}, 400, "not a time"),
        ({"speech_xl": {"from": -1}}, 400, "not a time"),
        ({"speech_xl": {"from": 9}}, 400, "outside the recording"),
        ({"speech_xl": {"from": 1, "to": 0.5}}, 400, "after the start"),
        ({"speech_xl": {"rate": 8}}, 400, "rate"),
        ({"speech_xl": {"memory": "mem_" + "0" * 32}}, 400, "not both"),
        ({"speech_xl": 5}, 400, "speech_xl"),
    ],
)
def test_fields_that_cannot_be(server: Server, change: dict[str, Any], status: int, sentence: str) -> None:
    assert sentence in refused(server, status, json=GOOD | change)


@pytest.mark.parametrize(
    ("change", "field", "sentence"),
    [
        ({"stop": 5}, "stop", "should be a valid string"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid array"),
        ({"messages": messages("a?", {"text": "b"})}, "messages.0.content.0", "A part needs a type: text, input_audio"),
        (
            {"messages": messages("a?", {"type": "input_audio", "input_audio": {"data": 5, "format": "wav"}})},
            "messages.0.content.0.input_audio.data",
            "valid string",
        ),
        ({"messages": messages("a?", {"type": "text"})}, "messages.0.content.0.text", "This field is needed"),
        ({"messages": []}, "messages", "At least one is needed"),
        ({"speech_xl": {"ratio": []}}, "speech_xl.ratio", "valid integer"),
        ({"speech_xl": {"rate": 8}}, "speech_xl.rate", "There is no such field"),
    ],
)
def test_a_refusal_names_the_field_as_the_client_wrote_it(
    server: Server, change: dict[str, Any], field: str, sentence: str
) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=GOOD | change, timeout=LONGEST_WAIT)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == field
    assert error["message"].startswith(f"{field}: ") and sentence in error["message"]


def test_a_field_of_a_form_is_named_as_in_json(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/memories", files={"file": WAV}, data={"speech_xl[rate]": "8"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "speech_xl.rate"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"model": "\\ud800"}',
        b"model=tiny",
        b'{"model": NaN}',
    ],
)
def test_bodies_that_are_no_json(server: Server, content: bytes) -> None:
    refused(server, 400, content=content)


def test_a_memory_that_is_not_there(server: Server) -> None:
    for identifier in ("mem_" + "0" * 32, "../../etc/passwd", "", "x" * 10_000):
        body = GOOD | {"messages": messages("a?"), "speech_xl": {"memory": identifier}}
        assert "no memory with this id" in refused(server, 404, json=body)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("path", ["chat/completions", "audio/transcriptions", "memories"])
def test_three_gigabytes_are_refused_before_they_are_sent(server: Server, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=LONGEST_WAIT) as connection:
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {3 * 10**9}\r\n"
        connection.sendall((head + "Content-Type: multipart/form-data; boundary=b\r\n\r\n").encode())
        status, body = read_answer(connection)
    assert status == 413 and body["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_say_how_long_it_is(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    with serving(tiny_speech_model, tmp_path / "memories", json_bytes=2**20, upload_bytes=2**20) as small:
        for path, kind in (("chat/completions", "application/json"), ("memories", "multipart/form-data; boundary=b")):
            start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            content = (piece for piece in [start, *[b"a" * 2**16] * 40])  # in chunks, without a length
            answer = httpx.post(
                f"{small.url}/v1/{path}", content=content, headers={"Content-Type": kind}, timeout=LONGEST_WAIT
            )
            assert answer.status_code == 413 and "1MiB" in answer.json()["error"]["message"]


def test_a_sender_that_pauses_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LONGEST_PAUSE", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=LONGEST_WAIT) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{"
        )
        status, body = read_answer(connection)
    assert status == 408 and body["error"]["code"] == "slow_body"
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("BREW", "/v1/models", 405),
        ("GET", "/v1/models/gpt-4o", 404),
        ("GET", "/v1/memories/x", 404),
    ],
)
def test_addresses_that_are_none(server: Server, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status and answer.json()["error"]["message"].endswith(".")


def test_a_defect_shows_nothing_of_itself() -> None:
    app = FastAPI()
    add_handlers(app)

    @app.get("/{kind}")
    def fail(kind: str) -> None:
        raise OSError(errno.ENOSPC, "full", "/secret/path") if kind == "full" else RuntimeError("secret")

    client = TestClient(app, raise_server_exceptions=False)
    for kind, status in (("full", 507), ("defect", 500)):
        answer = client.get(f"/{kind}")
        assert answer.status_code == status and "secret" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"
    assert TestClient(app).get("/full").status_code == 507  # and no traceback in the log: a full disk is no defect


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("talk.wav", "talk.wav"),
        ("../../etc/passwd", "passwd"),
        ("C:\\music\\a b.mp3", "a b.mp3"),
        ("", "recording"),
        ("..", "recording"),
        (".hidden", "hidden"),
        ("a\x00b\nc\u202e.wav", "abc.wav"),
        ("\N{SNOWMAN}.wav", "\N{SNOWMAN}.wav"),
        ("x" * 500 + ".wav", "x" * 51 + ".wav"),
        ("x" * 500, "x" * 60),
        ("a." + "y" * 100, "a." + "y" * 58),
    ],
)
def test_names_are_names_only(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_base64_in_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.recordings.ENCODED_BLOCK", 16)
    data = bytes(range(256)) * 3
    for text in (b64(data), base64.encodebytes(data).decode(), "data:x;base64," + b64(data)):
        recording = from_base64(text, "a.wav", 1000, start=text.find(",") + 1)
        assert recording.path.read_bytes() == data
        recording.close()
        assert not recording.path.parent.exists()
