"""`speech-xl`: its subcommands, what calling one imports, and packages that are not installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import speech_xl
from speech_xl.cli import main
from speech_xl.commands import COMMANDS, Command

ROOT = Path(__file__).parent.parent
OTHERS = {"converters", "evaluation", "gradio", "ray", "space", "training", "transformers"}


def test_every_command_is_a_module_that_names_a_known_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for command in COMMANDS.values():
        assert find_spec(command.module) is not None and command.extra in (None, *extras)


def test_the_help_lists_the_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and all(f"{name} {command.help}" in said for name, command in COMMANDS.items())


@pytest.mark.parametrize("words", [[], ["frobnicate"], ["--model", "nano"], ["--", "ask"]])
def test_words_that_name_no_command_are_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and "usage: speech-xl" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"Speech-XL {speech_xl.__version__}\n"


@pytest.mark.parametrize("name", ["convert", "train", "evaluate"])
def test_the_other_programs_are_called_by_their_subcommand(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0 and capsys.readouterr().out.startswith(f"usage: speech-xl {name} ")


def test_asking_imports_no_other_command(tiny_checkpoint: Path, recording: Path) -> None:
    words = ["ask", str(recording), "a?", "--model", str(tiny_checkpoint), "--backend", "torch", "--max-tokens", "2"]
    program = f"import sys\nfrom speech_xl.cli import main\nassert main({words}) == 0\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "torch" in loaded and not OTHERS & loaded
    assert not {name for name in done.stdout.splitlines()[-1].split() if name.startswith("speech_xl.batch")}


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)  # importing it fails
    for loaded in [name for name in sys.modules if name.startswith("evaluation")]:
        monkeypatch.delitem(sys.modules, loaded)
    assert main(["evaluate", "data.jsonl"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "evaluate needs the package jiwer" in said and "pip install '.[train]'" in said


def test_a_missing_module_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "lost", Command("speech_xl.commands.lost", "is not there"))
    with pytest.raises(ModuleNotFoundError):
        main(["lost"])
