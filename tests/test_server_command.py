"""`python -m speech_xl serve` as a user has it: it starts, answers, ends, and says what is wrong with a flag."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from openai import OpenAI

from server.app import build_app
from server.command import KEYS_VARIABLE, build_parser, settings_of
from server.page import add_page
from server.settings import Settings
from space.shelf import Shelf
from speech_xl.cli import main
from speech_xl.model import SpeechModel
from tests.serving import LONGEST_WAIT, input_audio, messages, talk


@pytest.fixture
def process(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[subprocess.Popen]:
    words = ["--port", "0", "--store", tmp_path / "memories", "--model", tiny_checkpoint, "--backend", "torch"]
    process = subprocess.Popen(
        [sys.executable, "-m", "speech_xl", "serve", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {KEYS_VARIABLE: "secret", "TMPDIR": str(tmp_path)},
    )
    yield process
    process.kill()
    process.communicate()


def test_it_answers_until_it_is_stopped(process: subprocess.Popen, tmp_path: Path) -> None:
    said = process.stderr.readline()
    url = re.search(r"http://\S+/v1", said)[0]
    asked = {"model": "tiny", "messages": messages("a?", input_audio(talk(3.0))), "max_tokens": 2}
    assert httpx.post(f"{url}/chat/completions", json=asked).status_code == 401
    headers = {"Authorization": "Bearer secret"}
    answer = httpx.post(f"{url}/chat/completions", json=asked, headers=headers, timeout=LONGEST_WAIT)
    assert answer.status_code == 200 and answer.json()["choices"]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LONGEST_WAIT)
    assert "Traceback" not in errors and len(list((tmp_path / "memories").rglob("mem_*.sxl"))) == 1


def test_an_idle_connection_stays_for_longer_than_a_client_keeps_it(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[uvicorn.Config] = []

    class Unstarted:
        def __init__(self, config: uvicorn.Config):
            made.append(config)

        def run(self, sockets: list[socket.socket]) -> None:
            pass

    monkeypatch.setattr("server.command.Server", Unstarted)
    words = [
        "--port",
        "0",
        "--store",
        str(tmp_path / "memories"),
        "--model",
        str(tiny_checkpoint),
        "--backend",
        "torch",
    ]
    assert main(["serve", *words]) == 0
    kept = OpenAI(api_key="x")._client._transport._pool._keepalive_expiry
    assert made[0].timeout_keep_alive > 2 * kept > 0


def test_it_ends_in_the_middle_of_a_recording(process: subprocess.Popen, tmp_path: Path) -> None:
    port = int(re.search(r":(\d+)/v1", process.stderr.readline())[1])
    headers = {"Authorization": "Bearer secret"}
    asked = {"model": "tiny", "messages": messages("a?", input_audio(talk(600.0))), "stream": True}
    with httpx.stream(
        "POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=asked, headers=headers, timeout=LONGEST_WAIT
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
        # A fast machine may have heard it all by then, and answers.
        assert any("being stopped" in line or "[DONE]" in line for line in rest), rest
    _, errors = process.communicate(timeout=LONGEST_WAIT)
    assert "Traceback" not in errors
    assert list(tmp_path.rglob("*.sxl")) == [] == list(tmp_path.glob("speech-xl-*"))


def refused(capsys: pytest.CaptureFixture, *words: object) -> str:
    code = main(["serve", *map(str, words)])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_what_cannot_be_served(capsys: pytest.CaptureFixture, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "another --host or --port" in refused(capsys, "--port", taken.getsockname()[1])
    for words in (["--port", 99999], ["--host", "no such host"], ["--host", "192.0.2.1", "--port", 0]):
        assert "another --host or --port" in refused(capsys, *words)
    assert "no checkpoint folder" in refused(capsys, "--port", 0, "--model", tmp_path / "none")
    (tmp_path / "file").write_text("")
    words = ["--port", 0, "--model", tiny_checkpoint, "--backend", "torch", "--store", tmp_path / "file"]
    assert "--store" in refused(capsys, *words)
    assert "--shelf" in refused(capsys, "--port", 0, "--page", "--shelf", tmp_path / "file")
    for words in (["--shelf", tmp_path], ["--shelf-days", 3]):
        assert "add --page" in refused(capsys, "--port", 0, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["--store-budget", "much"],
        ["--listening", "0"],
        ["--answering", "-1"],
        ["--waiting", "9" * 5000],
        ["--max-hours", "nan"],
        ["--max-hours", "0"],
        ["--shelf-days", "-1"],
        ["--audio-urls", "all"],
        ["--memory-bits", "3"],
        ["--nothing"],
    ],
)
def test_flags_that_cannot_be(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *words])
    assert stopped.value.code == 2 and words[0] in capsys.readouterr().err


def test_flags_become_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, " b, c,,")
    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path))
    words = [
        "--api-key",
        "a",
        "--store-budget",
        "1GiB",
        "--max-hours",
        "0.5",
        "--listening",
        "3",
        "--audio-urls",
        "public",
    ]
    settings = settings_of(build_parser("speech-xl serve").parse_args(words))
    assert settings.keys == ("a", "b", "c") and settings.store == tmp_path / "memories"
    assert settings.store_bytes == 2**30 and settings.hours == 0.5 and settings.listening == 3
    assert settings.audio_urls == "public" and settings.upload_bytes == 2**31
    monkeypatch.delenv(KEYS_VARIABLE)
    assert settings_of(build_parser("speech-xl serve").parse_args([])).keys == ()


def test_the_page_beside_the_api(tiny_speech_model: SpeechModel, tmp_path: Path) -> None:
    settings = Settings(store=tmp_path / "memories", keys=("secret",))
    shelf = Shelf(tmp_path / "shelf")
    client = TestClient(add_page(build_app(tiny_speech_model, settings), tiny_speech_model, settings, shelf))
    assert client.get("/v1/models").status_code == 401 and client.get("/health").status_code == 200
    assert client.get("/v1/nothing").json()["error"]["message"]
    assert client.get("/page/config").status_code == 401
    for password, status in (("wrong", 400), ("secret", 200)):
        assert client.post("/page/login", data={"username": "me", "password": password}).status_code == status
    page = client.get("/page/config")
    assert page.status_code == 200 and "Keep on shelf" in page.text
    # Gradio's endpoint for agents shows itself to everybody and cannot log in: it is there only where there are no keys.
    assert client.get("/page/gradio_api/mcp/schema").status_code == 404
