"""`python app.py` as a visitor and a program meet it: who gets in, and what is said of wrong flags."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError

import app

SCHEMA = "gradio_api/mcp/schema"  # of Gradio's endpoint for agents


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """The command line, to which tests add theirs."""
    words = ["app.py", "--model", str(tiny_checkpoint), "--backend", "torch", "--shelf", str(tmp_path / "shelf")]
    monkeypatch.setattr(sys, "argv", words)
    return words


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[gr.Blocks]]:
    """The pages that are launched, for real but without waiting until they end; closed behind the test."""
    launched: list[gr.Blocks] = []
    launch = gr.Blocks.launch

    def go_on(page: gr.Blocks, **settings: object) -> object:
        launched.append(page)
        return launch(page, prevent_thread_lock=True, quiet=True, **settings)

    monkeypatch.setattr(gr.Blocks, "launch", go_on)
    yield launched
    for page in launched:
        page.close()


def test_without_a_login_agents_find_their_endpoint(flags: list[str], pages: list[gr.Blocks]) -> None:
    flags += ["--port", "0"]
    assert app.main() == 0
    assert "ask_recording" in httpx.get(f"{pages[0].local_url}{SCHEMA}").text


def test_with_a_login_nothing_is_reached_without_it(flags: list[str], pages: list[gr.Blocks]) -> None:
    flags += ["--auth", "visitor:a:secret"]
    assert app.main() == 0
    url = pages[0].local_url
    for path in (SCHEMA, "gradio_api/mcp/", "gradio_api/mcp/sse"):
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        accept = {"Accept": "application/json, text/event-stream"}
        for answer in (httpx.get(f"{url}{path}"), httpx.post(f"{url}{path}", json=body, headers=accept)):
            assert answer.status_code in (401, 404, 405) and "ask_recording" not in answer.text
    for auth in (None, ("visitor", "wrong")):
        with pytest.raises((AuthenticationError, ValueError), match=r"[Ll]ogin|[Aa]uth"):
            Client(url, auth=auth, verbose=False)
    client = Client(url, auth=("visitor", "a:secret"), verbose=False)
    with pytest.raises(Exception, match="listen to a recording first"):
        client.predict("a?", api_name="/ask")


@pytest.mark.parametrize("words", [["--auth", "visitor"], ["--auth", ":"], ["--auth", ""], ["--auth", "visitor:"]])
def test_half_a_login_is_a_sentence(words: list[str], flags: list[str], capsys: pytest.CaptureFixture) -> None:
    flags += words
    assert app.main() == 2 and capsys.readouterr().err.startswith("--auth needs a name and a password")


def test_what_cannot_be_served_is_a_sentence(flags: list[str], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        sys.argv = [*flags, *map(str, words)]
        assert app.main() == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another --host or --port" in refused("--port", taken.getsockname()[1])
    assert "another --host or --port" in refused("--port", 99999)
    assert "another --host or --port" in refused("--host", "no such host")
    (tmp_path / "file").write_text("")
    assert "--shelf" in refused("--shelf", tmp_path / "file")
    assert "no checkpoint folder" in refused("--model", tmp_path / "none")


@pytest.mark.parametrize("flag", ["--max-hours", "--shelf-days"])
@pytest.mark.parametrize("value", ["nan", "0", "-1", "many", "inf"])
def test_times_that_cannot_be(flag: str, value: str, flags: list[str], capsys: pytest.CaptureFixture) -> None:
    flags += [flag, value]
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == 2 and f"is not a number of {flag.rpartition('-')[2]}" in capsys.readouterr().err
