"""A server without keys is for programs, not for whatever site somebody on this machine has open in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.command import build_parser, settings_of
from speech_xl.model import SpeechModel
from tests.serving import LONGEST_WAIT, Server, serving, talk

LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "models": ("GET", "/v1/models", {}),
    "memories": ("GET", "/v1/memories", {}),
    "a form, which a page may send anywhere": ("POST", "/v1/memories", {"files": {"file": talk(2.0)}}),
    "agents": ("POST", "/mcp", {"json": LIST_TOOLS}),
}


@pytest.fixture(scope="module")
def server(tiny_speech_model: SpeechModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tiny_speech_model, tmp_path_factory.mktemp("memories"), is_private=True) as server:
        yield server


def ask(server: Server, name: str, **headers: str) -> httpx.Response:
    method, path, rest = REQUESTS[name]
    headers = {"Accept": "application/json, text/event-stream"} | headers
    return httpx.request(method, f"{server.url}{path}", headers=headers, timeout=LONGEST_WAIT, **rest)


@pytest.mark.parametrize("name", REQUESTS)
def test_pages_of_other_sites_are_refused(server: Server, name: str) -> None:
    for origin in ("https://evil.example", "https://localhost.evil.example", "null", "http://[", ""):
        answer = ask(server, name, Origin=origin)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "invalid_origin", origin
    for origin in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000"):
        assert ask(server, name, Origin=origin).status_code == 200, origin
    assert ask(server, name).status_code == 200


@pytest.mark.parametrize("name", REQUESTS)
def test_a_name_that_was_made_to_lead_here_is_refused(server: Server, name: str) -> None:
    for host in ("evil.example", f"evil.example:{server.port}", "[", "localhost.evil.example"):
        answer = ask(server, name, Host=host)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "invalid_host", host
    for host in ("localhost", f"LOCALHOST:{server.port}", "[::1]"):
        assert ask(server, name, Host=host).status_code == 200, host


def test_a_server_for_others_has_any_name_and_keys_are_enough(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    elsewhere = {"Host": "speech.example", "Origin": "https://speech.example"}
    with serving(tiny_speech_model, tmp_path / "open") as server:
        assert ask(server, "models", Host="speech.example").status_code == 200
        assert ask(server, "models", **elsewhere).status_code == 403
    with serving(tiny_speech_model, tmp_path / "keys", keys=("ann",), is_private=True) as server:
        assert ask(server, "models", **elsewhere).status_code == 401
        assert ask(server, "models", Authorization="Bearer ann", **elsewhere).status_code == 200


def test_the_address_says_whom_it_is_for() -> None:
    parser = build_parser("speech-xl serve")
    for words, is_private in (([], True), (["--host", "::1"], True), (["--host", "0.0.0.0"], False)):
        assert settings_of(parser.parse_args(words)).is_private == is_private
