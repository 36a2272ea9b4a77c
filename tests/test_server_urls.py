"""Recordings behind addresses: none unless it is allowed, none of a private network unless that is, and limits."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from server import remote
from server.errors import ApiError
from speech_xl.model import SpeechModel
from tests.serving import messages, serving, talk

PAGES: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/talk.wav": (200, {}, talk(2.0)),
    "/moved": (302, {"Location": "/talk.wav?a=b"}, b""),
    "/round": (302, {"Location": "/round"}, b""),
    "/file": (302, {"Location": "file:///etc/passwd"}, b""),
    "/gone": (404, {}, b""),
    "/page": (200, {}, b"<html>"),
    "/empty": (200, {}, b""),
}


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = PAGES[self.path.partition("?")[0]]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    """The address of a file server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(url: str, allowed: str = "any", limit: int = 10**6) -> bytes:
    recording = asyncio.run(remote.fetch(url, allowed, limit))
    data = recording.path.read_bytes()
    recording.close()
    return data


def test_a_recording_is_fetched_and_asked(tiny_speech_model: SpeechModel, files: str, tmp_path: Path) -> None:
    with serving(tiny_speech_model, tmp_path / "memories", audio_urls="any") as server:
        for path, reused in (("/talk.wav", False), ("/moved", True)):
            part = {"type": "audio_url", "audio_url": {"url": files + path}}
            said = server.client().chat.completions.create(model="tiny", messages=messages("a?", part), max_tokens=2)
            assert said.speech_xl["seconds_heard"] == 2.0 and said.speech_xl["reused"] is reused
        assert server.client().get("/memories", cast_to=object)["data"][0]["filename"] == "talk.wav"
        part["audio_url"]["url"] = files + "/page"
        with pytest.raises(openai.BadRequestError, match="not a recording"):
            server.client().chat.completions.create(model="tiny", messages=messages("a?", part))


def test_a_server_that_was_not_told_to_fetches_nothing(
    tiny_speech_model: SpeechModel, files: str, tmp_path: Path
) -> None:
    with serving(tiny_speech_model, tmp_path / "memories") as server:
        part = {"type": "audio_url", "audio_url": {"url": files + "/talk.wav"}}
        with pytest.raises(openai.BadRequestError, match="fetches no recordings"):
            server.client().chat.completions.create(model="tiny", messages=messages("a?", part))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("/gone", "status 404"), ("/round", "too many times"), ("/file", "does not start with http"), ("/empty", "empty")],
)
def test_answers_that_are_no_recordings(files: str, path: str, sentence: str) -> None:
    with pytest.raises(ApiError, match=sentence) as refused:
        fetch(files + path)
    assert refused.value.status == 400


def test_only_so_much_is_fetched(files: str) -> None:
    assert fetch(files + "/talk.wav") == PAGES["/talk.wav"][2]
    with pytest.raises(ApiError) as refused:
        fetch(files + "/talk.wav", limit=1000)
    assert refused.value.status == 413


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a",
        "ftp://a/b",
        "file:///etc/passwd",
        "http://[",
        "http://a:99999/",
        "a",
        "",
        "http://127.0.0.1:1/",
        "http://no-such-host.invalid/",
        "http://\N{SNOWMAN}\ud800/",
        "http://a b/",
        "https://127.0.0.1:1/",
    ],
)
def test_addresses_that_cannot_be_fetched(url: str) -> None:
    with pytest.raises(ApiError, match=r"cannot be fetched: the address .*\.$") as refused:
        fetch(url)
    assert refused.value.status == 400 and len(refused.value.message) < 200


def test_private_addresses_stay_private(files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (files, files.replace("127.0.0.1", "localhost"), "http://[::1]/", "http://169.254.169.254/latest"):
        with pytest.raises(ApiError, match="not a public address"):
            fetch(url + "/talk.wav", "public")

    # A name that is public when it is looked up first, and private when it is connected to: it is looked up once.
    asked = []

    async def rebinding(host: str, port: int, **_: object) -> list:
        asked.append(host)
        return [(2, 1, 6, "", ("93.184.215.14" if len(asked) == 1 else "127.0.0.1", port))]

    async def connect(_: object, host: str, *arguments: object) -> None:
        raise ConnectionRefusedError(host)

    monkeypatch.setattr(remote.httpcore.AnyIOBackend, "connect_tcp", connect)

    async def attempt() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebinding)
        await remote.fetch("http://rebinding.example/a.wav", "public", 100)

    with pytest.raises(ApiError, match="cannot be reached") as refused:
        asyncio.run(attempt())
    assert str(refused.value.__cause__) == "93.184.215.14" and asked == ["rebinding.example"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07::1", True),
        ("10.0.0.1", False),
        ("192.168.1.1", False),
        ("172.16.0.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert remote.is_public(address) is public
