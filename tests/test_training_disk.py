"""What training leaves on a disk: whole or not at all, one sentence where the disk takes no more, nothing for good."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from speech_xl.config_file import load_config
from speech_xl.errors import OutputError
from tests.tiny_training import TALKS, hearing_checkpoint, recipe, train, write_lines
from training import sharded_state
from training.export import export, folder_of, publish
from training.state import StageFolder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hearing_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def test_a_done_stages_state_goes_when_a_kill_left_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    talks = write_lines(tmp_path / "talks.jsonl", TALKS)
    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "drop_state", killed)
        with pytest.raises(KeyboardInterrupt):
            train(model, tmp_path / "run", recipe(save_minutes=1e-6), talks)
    (stage,) = (tmp_path / "run" / "stages").iterdir()
    assert (stage / "done.json").exists() and (stage / "state.pt").exists()
    train(model, tmp_path / "run", recipe(save_minutes=1e-6), talks)
    assert not (stage / "state.pt").exists()


def test_what_was_set_aside_goes_when_a_kill_left_it(tmp_path: Path) -> None:
    (tmp_path / "model.old").mkdir()  # killed between the two renames
    (tmp_path / "model.partial").mkdir()
    with folder_of(tmp_path / "model"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("training.export.save_file", full)
    with pytest.raises(OutputError, match=r"new cannot be written .*No space left"):
        export({}, load_config(model), model, tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"model cannot be written \(Not a directory\)"):
        publish(model, tmp_path / "file" / "model")
    assert not (tmp_path / "new").exists()


def test_a_state_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:815] . PytorchStreamWriter failed writing file")

    folder = StageFolder(tmp_path / "stage", 5)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="make room"):
        folder.save({})
    assert list(folder.path.iterdir()) == []


def test_shards_that_cannot_be_written_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_process = SimpleNamespace(get_rank=lambda: 0, barrier=lambda: None)
    monkeypatch.setattr(sharded_state, "dist", one_process)
    folder = StageFolder(tmp_path / "stage", 5)
    (folder.path / "shards.partial").touch()  # a file where a folder belongs
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(OutputError, match=r"shards.partial cannot be written .*run the same command again"):
        sharded_state.save_shards(folder, 1, 0.0, {"weight": weight}, torch.optim.AdamW([weight]))
    assert folder.shards() == []
