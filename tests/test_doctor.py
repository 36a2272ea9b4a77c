"""`doctor`: right numbers pass, wrong ones and missing parts are named with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from speech_xl import doctor
from speech_xl.backend import is_installed
from speech_xl.cli import main
from speech_xl.example import EXAMPLE, load_example, suggested_questions
from tests.tiny import tiny_config, write_sound


@pytest.fixture
def short_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_sound(tmp_path / "example.wav", 3.0)
    path.with_suffix(".json").write_text(json.dumps({"title": "Noise", "suggestions": ["what drink is order 4?"]}))
    monkeypatch.setattr(doctor, "EXAMPLE", path)
    monkeypatch.setattr(doctor, "WANTED_SPEED", 0.0)
    return path


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_every_backend_computes_the_stored_numbers(backend: str) -> None:
    if not is_installed(backend):
        pytest.skip(f"{backend} is not installed")
    assert doctor.check_numbers(backend).advice == ""


def test_wrong_numbers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = json.loads(doctor.REFERENCE.read_text())
    wrong["keys"][3] += 0.01
    (tmp_path / "reference.json").write_text(json.dumps(wrong))
    monkeypatch.setattr(doctor, "REFERENCE", tmp_path / "reference.json")
    assert "requirements.txt" in doctor.check_numbers("torch").advice


def test_a_backend_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(doctor, "compute_probe", broken)
    finding = doctor.check_numbers("torch")
    assert "no driver" in finding.text and "pip install" in finding.advice


def test_the_report_of_a_sound_machine(
    tiny_checkpoint: Path, short_example: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "shutil", SimpleNamespace(which=lambda name: "/usr/bin/ffmpeg"))
    monkeypatch.setattr(doctor, "ctypes", SimpleNamespace(CDLL=lambda name: None))
    assert main(["doctor", "--model", str(tiny_checkpoint), "--backend", "torch"]) == 0
    printed = capsys.readouterr().out
    assert "backend: torch on c" in printed and "real time" in printed and "All is well." in printed


def test_a_missing_model_is_advice_and_exit_code_2(
    short_example: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "EMBEDDED_FOLDER", tmp_path)
    monkeypatch.setattr(doctor, "check_backends", lambda: iter(()))
    assert main(["doctor", "--backend", "torch"]) == 2
    captured = capsys.readouterr()
    assert "embedded model: not there" in captured.out and "embedded model" in captured.err


def test_a_model_of_one_kind_of_recording_is_asked_its_own_question(short_example: Path) -> None:
    assert suggested_questions(tiny_config(), short_example) == ("what drink is order 4?",)
    own = ("What size is it?", "Whose is it?")
    assert suggested_questions(tiny_config(suggestions=own), short_example) == own
    assert len(load_example().suggestions) > 3 and EXAMPLE.is_file() and EXAMPLE.stat().st_size < 1.5 * 10**6
