"""What is put on a Space: everything that the page imports and shows, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from space import deploy, zero
from space.api import Endpoints
from space.handlers import Handlers
from speech_xl.model import SpeechModel
from tests.tiny import write_sound

ROOT = Path(__file__).parent.parent


def test_the_list_holds_what_a_space_needs_and_nothing_else() -> None:
    files = deploy.space_files()
    assert {"README.md", "app.py", "requirements.txt", "space/page.py", "space/examples/town_meeting.ogg"} <= set(files)
    assert not [f for f in files if f.startswith(("tests/", "runs/", "cache/", ".venv/", "benchmarks/", "evaluation/"))]
    assert not [f for f in files if f.endswith((".pyc", ".sxl")) or "training" in f]
    assert all((ROOT / f).is_file() for f in files)


def test_the_page_imports_nothing_outside_the_list(tmp_path: Path) -> None:
    for name in deploy.space_files():
        if name.endswith((".py", ".css", ".js")):
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    code = "import app, torch_backend.backend, sys; print(app.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path))


def test_a_dry_run_uploads_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(deploy, "EMBEDDED_FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    assert deploy.main(["somebody/space", "--dry-run"]) == 0
    assert "app.py" in capsys.readouterr().out


def test_a_gpu_is_borrowed_for_as_long_as_the_recording_suggests(
    monkeypatch: pytest.MonkeyPatch, tiny_speech_model: SpeechModel, recording: Path, tmp_path: Path
) -> None:
    asked: list[int] = []

    def gpu(duration: object) -> object:
        def decorate(function: object) -> object:
            def work(*arguments: object) -> Iterator[object]:
                asked.append(duration(*arguments) if callable(duration) else duration)
                yield from function(*arguments)

            return work

        return decorate

    here = Endpoints(Handlers(tiny_speech_model, 1.0))
    assert not zero.on_zero()
    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=gpu))
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    there = Endpoints(Handlers(tiny_speech_model, 1.0))
    answers = []
    for endpoints in (here, there):
        _, session = endpoints.listen(str(recording), "4", None)
        said = json.loads(endpoints.ask("what drink is order 47?", session))["answer"]
        answers.append((said, endpoints.transcribe("memory", session)))
        session.forget()
    assert answers[0] == answers[1]
    seconds = zero.listening_seconds(str(recording))
    assert asked == [seconds, zero.ANSWER_SECONDS, seconds]
    longer = write_sound(tmp_path / "longer.wav", 600, rate=8000)
    assert asked[0] < zero.listening_seconds(str(longer)) <= zero.LONGEST_SECONDS
