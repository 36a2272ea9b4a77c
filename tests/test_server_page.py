"""`serve --page`: the page beside the API answers programs, and reads nothing of this machine but what was uploaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from speech_xl.model import SpeechModel
from tests.serving import LONGEST_WAIT, Server, serving, talk


@pytest.fixture(scope="module")
def server(tiny_speech_model: SpeechModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tiny_speech_model, tmp_path_factory.mktemp("memories"), has_page=True) as server:
        yield server


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("private") / "talk.wav"
    path.write_bytes(talk(3.0))
    return path


def call(server: Server, endpoint: str, *values: object) -> str:
    """What comes of a program's call, as the events that are sent."""
    url = f"{server.url}/page/gradio_api/call/{endpoint}"
    answer = httpx.post(url, json={"data": values}, timeout=LONGEST_WAIT)
    return httpx.get(f"{url}/{answer.json()['event_id']}", timeout=LONGEST_WAIT).text


def test_what_was_uploaded_is_heard_and_asked(server: Server, recording: Path) -> None:
    for address in (f"{server.url}/page", f"{server.url}/page/"):
        client = Client(address, verbose=False)
        assert json.loads(client.predict(handle_file(recording), "8", api_name="/listen"))["seconds"] == 3.0
        assert "answer" in json.loads(client.predict("a?", api_name="/ask"))


def test_what_cannot_be_heard_is_a_sentence_without_a_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    client = Client(f"{server.url}/page", verbose=False)
    with pytest.raises(AppError, match=r"^bad\.wav is not a recording"):
        client.predict(handle_file(tmp_path / "bad.wav"), "8", api_name="/listen")


def test_a_file_of_this_machine_is_not_read(server: Server, recording: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    for path in (recording, tmp_path / "secret.txt", Path("/etc/passwd"), Path("app.py")):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        for endpoint, *rest in (("ask_recording", "a?", "8"), ("transcribe_recording", "", "8"), ("listen", "8")):
            said = call(server, endpoint, file, *rest)
            assert said == 'event: error\ndata: {"error": null}\n\n'
        assert httpx.get(f"{server.url}/page/gradio_api/file={path}").status_code in (403, 404)
