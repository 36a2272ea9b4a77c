"""A recogniser trained on transcribed windows: what it learns, what stays as it is, what a line must have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from speech_xl.config_file import load_config
from speech_xl.prompt import Prompt
from speech_xl.quiet_windows import lone_window
from tests.tiny import RECOGNIZER_TOKENIZER, save_checkpoint, tiny_config, tiny_recognizer_config, write_sound
from tests.tiny_training import metrics, recipe, tensors, train, write_lines
from torch_backend.backend import Backend
from training.data import DataError, read_recordings
from training.recipe import RecipeError, recipe_from_dict
from training.recognition import RecognitionBatcher, WindowSample
from training.sound import read_samples

STAGE = {
    "name": "ears",
    "kind": "recognition",
    "steps": 2,
    "batch": 2,
    "log_every": 1,
    "validate_every": 200,
    "learning_rates": {".": 1e-2},
    "lora": {"rank": 4, "alpha": 8, "targets": r"speech\.recognizer\..*_proj"},
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    lines = []
    for n, text in enumerate(["what is said", "here and there", "more", "once more"]):
        write_sound(folder / f"{n}.wav", 1.0 + n / 10, seed=n)
        lines.append({"audio": f"{n}.wav", "text": text})
    return write_lines(folder / "l.jsonl", lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "tiny", tiny_recognizer_config())


def test_adapters_on_the_text_decoder_move_nothing_else(model: Path, spoken: Path, tmp_path: Path) -> None:
    out = train(model, tmp_path / "out", recipe(STAGE, sst=None), spoken, spoken)
    before, after = tensors(model), tensors(out)
    moved = {n for n in before if not torch.equal(before[n].float(), after[n].float())}
    assert moved and all(n.startswith("speech.recognizer.layers.") and "_proj" in n for n in moved)


def test_what_was_learnt_is_what_the_backend_hears(model: Path, spoken: Path, tmp_path: Path) -> None:
    stage = STAGE | {"lora": None, "steps": 150, "batch": 4, "decay": 0.2}
    out = train(model, tmp_path / "out", recipe(stage, sst=None), spoken)
    losses = list(metrics(tmp_path / "out", "ears")["loss"].values())
    assert losses[-1] < 0.2 * losses[0]
    config, recordings = load_config(out), read_recordings([spoken])
    mel = np.stack([lone_window(read_samples(r), config.encoder).mel for r in recordings])
    words = [RECOGNIZER_TOKENIZER.encode(" " + r.text).ids for r in recordings]
    assert [r.ids for r in Backend.load(out, config).recognize(mel)] == words


def test_windows_are_read_behind_the_line_before(model: Path) -> None:
    config = load_config(model)
    stage = recipe_from_dict({"stages": [STAGE | {"prompted": 1.0}]}).stages[0]
    read = replace(config.recognizer, previous_id=9)
    config = replace(config, recognizer=read)
    batcher = RecognitionBatcher(Prompt.load(model, config), config, stage, 1)
    features = model.parent / "features.npy"
    np.save(features, np.zeros((4, config.encoder.d_model), np.float16))
    samples = [
        WindowSample(2, None, words=np.array([5, 6], np.int32), features=features, before=before)
        for before in ((), (7, 8))
    ]
    (batch,) = batcher.training(samples, [0, 1], 0, 0.0, None)
    assert batch.ids[0, : len(read.start_ids) + 2].tolist() == [*read.start_ids, 5, 6]
    assert batch.ids[1].tolist() == [read.previous_id, 7, 8, *read.start_ids, 5, 6]
    assert batch.targets.tolist() == [5, 6, read.end_id] * 2
    first = len(read.start_ids) - 1
    assert batch.answer_rows.tolist() == [[0, first + i] for i in range(3)] + [[1, first + 3 + i] for i in range(3)]


def test_two_runs_hear_the_windows_once(model: Path, spoken: Path, tmp_path: Path) -> None:
    stages = [STAGE | {"steps": 1}, STAGE | {"steps": 1, "name": "again"}]
    train(model, tmp_path / "out", recipe(*stages, sst=None), spoken)
    assert len(list((tmp_path / "out" / "features").glob("*.window.npy"))) == 4


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"heard": "a b", "text": "a b"}, "trained on sound"),
        ({"audio": "0.wav", "text": "what drink " * 300}, "cut the recording"),
    ],
)
def test_a_line_that_is_no_window_is_named(
    line: dict, sentence: str, model: Path, spoken: Path, tmp_path: Path
) -> None:
    lines = write_lines(spoken.parent / "bad.jsonl", [{"audio": "1.wav", "text": "a"}, line])
    with pytest.raises(DataError, match=rf"bad.jsonl, line 2.*{sentence}"):
        train(model, tmp_path / "out", recipe(STAGE, sst=None), lines)


def test_a_checkpoint_without_a_recogniser_is_refused(spoken: Path, tmp_path: Path) -> None:
    plain = save_checkpoint(tmp_path / "tiny", tiny_config())
    with pytest.raises(RecipeError, match="has none"):
        train(plain, tmp_path / "out", recipe(STAGE, sst=None), spoken)
