"""The Hub: one sentence for everything that a network can answer, or not."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from speech_xl.checkpoints import check_checkpoint, resolve_checkpoint
from speech_xl.errors import CheckpointError
from tests import families
from tests.families import refusal, run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.qwen2_audio(tmp_path_factory.mktemp("source") / "tiny-audio")


def http_error(kind: type[Exception], status: int = 403) -> Exception:
    """One of huggingface_hub's own errors, which want the response that they are about."""
    from huggingface_hub.utils import httpx

    return kind("no", response=httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co")))


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (lambda: http_error(errors.GatedRepoError), "gated"),
        (lambda: http_error(errors.RepositoryNotFoundError), "The Hub has no"),
        (lambda: http_error(errors.RevisionNotFoundError), "revision"),
        (lambda: errors.LocalEntryNotFoundError("offline"), "cannot be reached"),
        (lambda: OSError("connection reset"), "continues"),
    ],
)
def test_the_hubs_refusals_are_one_sentence(made, word: str, tmp_path: Path, monkeypatch, capsys) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise made()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert word in refusal(capsys, "someone/something", tmp_path / "out", "--revision", "v2")


def test_offline_means_no_network_at_all(tmp_path: Path, capsys) -> None:
    """conftest sets HF_HUB_OFFLINE; the real client answers here."""
    assert "cannot be reached" in refusal(capsys, "someone/something", tmp_path / "out")
    assert refusal(capsys, "not a/valid id!", tmp_path / "out")


def test_a_hub_id_is_pinned_and_uploads_go_up(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    asked, sent = [], []

    def snapshot_download(name: str, revision: str | None = None, **_: object) -> str:
        asked.append((name, revision))
        return str(source)

    class Api:
        def create_repo(self, repo: str, **_: object) -> None:
            sent.append(repo)

        def upload_folder(self, folder_path: str, repo_id: str) -> None:
            if repo_id == "no/room":
                raise http_error(errors.HfHubHTTPError)
            sent.append((folder_path, repo_id))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert run("someone/something", tmp_path / "out", "--revision", "abc123", "--upload-repo", "me/mine") == 0
    assert asked == [("someone/something", "abc123")]
    assert sent == ["me/mine", (str(tmp_path / "out"), "me/mine")]
    assert run("someone/something", tmp_path / "more", "--upload-repo", "no/room") == 2
    assert "was not uploaded" in capsys.readouterr().err
    assert check_checkpoint(tmp_path / "more")


# A real client against a server on this machine. HF_ENDPOINT is read on import, so each runs in its own process.


def serve(answer: bytes) -> tuple[str, socket.socket]:
    """-> (address, listening socket) of a server that sends `answer` to whatever is asked and hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(answer)

    threading.Thread(target=loop, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", listening


def http(status: int, body: bytes, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {length or len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def sentence_of(words: list[str], endpoint: str, home: Path) -> str:
    """The one line that a command says when the Hub at `endpoint` fails it."""
    changes = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_test"}
    made = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | changes, capture_output=True, text=True)
    lines = [line for line in made.stderr.splitlines() if line and not line.startswith(("converting", "Retrying"))]
    assert made.returncode == 2 and len(lines) == 1, made.stderr
    return lines[0]


CONVERT = ["-m", "converters", "--hf-path", "someone/something", "--mlx-path"]
RESOLVE = """
import sys
from speech_xl.checkpoints import resolve_checkpoint
from speech_xl.errors import CheckpointError
try:
    resolve_checkpoint("someone/something")
except CheckpointError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "broke off"),
        (http(200, b'{"id": "someone/som', 4000), "broke off"),
        (http(200, b"<html>please log in to this hotel's network"), "broke off"),
        (http(200, b"{}"), "broke off"),
        (http(403, b"{}"), "(403)"),
    ],
    ids=["hangs up", "half an answer", "no json", "no repository", "forbidden"],
)
def test_a_network_that_fails_is_one_sentence(answer: bytes, words: str, tmp_path: Path) -> None:
    address, listening = serve(answer)
    with listening:
        assert words in sentence_of([*CONVERT, str(tmp_path / "out")], address, tmp_path)
        assert words in sentence_of(["-c", RESOLVE], address, tmp_path)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[", "http://127.0.0.1:notaport"])
def test_an_address_that_is_none(endpoint: str, tmp_path: Path) -> None:
    assert "HF_ENDPOINT" in sentence_of([*CONVERT, str(tmp_path / "out")], endpoint, tmp_path)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "nonsense"])
def test_an_upload_that_fails_leaves_the_output(endpoint: str, source: Path, tmp_path: Path) -> None:
    words = ["-m", "converters", "--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), "--upload-repo", "a/b"]
    assert "complete but was not uploaded" in sentence_of(words, endpoint, tmp_path)
    assert check_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(
    ("status", "word"),
    [(401, "account"), (403, "account"), (404, "no such"), (429, "requests"), (500, "later"), (503, "later")],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_each_refusal_has_its_own_sentence(status: int, word: str, is_wrapped: bool, monkeypatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        error = http_error(errors.HfHubHTTPError, status)
        if is_wrapped:  # what the client makes of it where nothing is cached
            raise errors.LocalEntryNotFoundError("no") from error
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=word):
        resolve_checkpoint("someone/something")


def test_the_commits_of_both_sources_are_said(source: Path, tmp_path: Path, capsys) -> None:
    whisper = families.whisper(tmp_path / "models--a--w/snapshots/c0ffee")
    qwen2 = families.qwen2(tmp_path / "models--b--q/snapshots/decade")
    assert run(whisper, tmp_path / "out", "--decoder", str(qwen2)) == 0
    out = capsys.readouterr().out
    assert "commit c0ffee of w" in out and "commit decade of q" in out and "--decoder-revision" in out
