"""Two processes train as one does, each with all of the network or with its share; a kill changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.processes import run
from tests.tiny import save_checkpoint, tiny_config, write_sound
from tests.tiny_training import SST, STAGE, TALKS, hearing_checkpoint, metrics, tensors, write_lines
from training.recipe import recipe_from_dict
from training.runner import Runner, multiplies_bfloat16

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")

STEPS = {"batch": 4, "steps": 5, "lessons": [{"ratios": ["raw", "raw", 2]}], "pack": 90, "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict, Path]:
    """A command without its output folder, and what one process makes of it: metrics and the run's folder."""
    folder = tmp_path_factory.mktemp("words")
    chosen = {"sst": SST, "seed": 3, "save_minutes": 0, "stages": [STAGE | STEPS]}
    return command_of(folder, hearing_checkpoint(folder / "tiny"), write_lines(folder / "talks.jsonl", TALKS), chosen)


def command_of(folder: Path, model: Path, data: Path, chosen: dict) -> tuple[list[str], dict, Path]:
    path = folder / "recipe.json"
    path.write_text(json.dumps(chosen))
    Runner(recipe_from_dict(chosen), [data], data, folder / "one").run(model)
    command = ["--model", str(model), "--data", str(data), "--validation", str(data), "--recipe", str(path)]
    return command, figures_of(folder / "one", chosen), folder / "one"


def figures_of(out: Path, chosen: dict) -> dict:
    found = {s["name"]: metrics(out, s["name"]) for s in chosen["stages"]}
    for figures in found.values():
        figures.pop("speech_tokens_per_second")
    return found


def assert_same(out: Path, one: dict, single: Path, chosen: dict) -> None:
    two = figures_of(out, chosen)
    for stage, figures in one.items():
        assert set(two[stage]) == set(figures)
        for name in figures:
            np.testing.assert_allclose(
                list(two[stage][name].values()), list(figures[name].values()), atol=1e-4, rtol=1e-4, err_msg=name
            )
    weights, others = tensors(single / "model"), tensors(out / "model")
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], atol=1e-4, rtol=1e-4)


def chosen_of(command: list[str]) -> dict:
    return json.loads(Path(command[-1]).read_text())


def test_two_processes_have_the_loss_of_one(words: tuple[list[str], dict, Path], tmp_path: Path) -> None:
    command, one, single = words
    assert run(2, [*command, "--output", str(tmp_path)]) == [0, 0]
    assert_same(tmp_path, one, single, chosen_of(command))


def test_shares_of_a_network_train_as_all_of_it_and_a_kill_changes_nothing(
    words: tuple[list[str], dict, Path], tmp_path: Path
) -> None:
    command, one, single = words
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run(2, [*command, "--output", str(straight)], "fsdp_7b.yaml") == [0, 0]
    assert_same(straight, one, single, chosen_of(command))
    adapters = [tensors(out / "adapter", "adapter_model") for out in (single, straight)]
    assert set(adapters[0]) == set(adapters[1]) and all(t.shape == adapters[0][n].shape for n, t in adapters[1].items())

    codes = run(2, [*command, "--output", str(killed)], "fsdp_7b.yaml", killed_at=3)
    assert codes[1] == -9 and codes[0] != 0
    (state,) = killed.glob("stages/first-*/state-*")
    assert state.name == "state-3" and not (killed / "model").exists()
    assert len(list(state.glob("*.distcp"))) == 2  # each process wrote its own
    assert run(2, [*command, "--output", str(killed)], "fsdp_7b.yaml") == [0, 0]
    resumed, wanted = tensors(killed / "model"), tensors(straight / "model")
    assert all(torch.equal(resumed[n], wanted[n]) for n in wanted)
    assert figures_of(killed, chosen_of(command)) == figures_of(straight, chosen_of(command))
    assert not list(killed.glob("stages/*/state*"))


def test_one_process_goes_on_from_what_two_left(words: tuple[list[str], dict, Path], tmp_path: Path) -> None:
    command, one, single = words
    run(2, [*command, "--output", str(tmp_path)], "fsdp_7b.yaml", killed_at=2)
    model, data = Path(command[1]), Path(command[3])
    Runner(recipe_from_dict(chosen_of(command)), [data], data, tmp_path).run(model)
    assert_same(tmp_path, one, single, chosen_of(command))


def test_sound_is_heard_alike_by_shares_of_a_network(tmp_path: Path) -> None:
    """CTC on changed sound, then the encoder, adapter and SSTs with a decoder: the same losses, classes and sound."""
    model = save_checkpoint(tmp_path / "tiny", tiny_config())
    for i in range(3):
        write_sound(tmp_path / f"{i}.wav", 1.0 + i / 2, seed=i)
    lines = [
        {"audio": f"{i}.wav", "text": "a b c d"[: 3 + 2 * i], "question": "what?", "answer": "a b"} for i in range(3)
    ]
    plain = {"steps": 2, "batch": 3, "lora": None, "validate_every": 2, "gradient_checkpointing": True}
    stages = [
        STAGE
        | plain
        | {
            "name": "align",
            "kind": "alignment",
            "loss": "ctc",
            "ctc_classes": 9,
            "augment": 0.5,
            "train": [r"speech\."],
            "lessons": [{"ratios": ["raw"]}],
        },
        STAGE | plain | {"train": [r"speech\.", "sst_", r"layers\.0"]},
    ]
    chosen = {"sst": SST, "seed": 3, "stages": stages}
    command, one, single = command_of(tmp_path, model, write_lines(tmp_path / "l.jsonl", lines), chosen)
    assert run(2, [*command, "--output", str(tmp_path / "two")], "fsdp_7b.yaml") == [0, 0]
    assert_same(tmp_path / "two", one, single, chosen)


def test_a_launch_that_shards_nothing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from training import sharding
    from training.recipe import RecipeError

    monkeypatch.setattr(sharding.dist, "is_initialized", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(RecipeError, match="set fsdp_version: 2"):
        sharding.sharding_settings()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert sharding.sharding_settings() is None


@pytest.mark.skipif(not multiplies_bfloat16("mixed"), reason="this processor has no bfloat16 units")
def test_shares_of_a_network_multiply_in_bfloat16(words: tuple[list[str], dict, Path], tmp_path: Path) -> None:
    command, one, _ = words
    mixed = chosen_of(command) | {"precision": "mixed"}
    mixed["stages"] = [mixed["stages"][0] | {"steps": 3}]
    command = [*command[:-1], str(write_lines(tmp_path / "recipe.json", [mixed]))]
    assert run(2, [*command, "--output", str(tmp_path / "two")], "fsdp_7b.yaml") == [0, 0]
    losses, wanted = (list(figures["first"]["loss"].values()) for figures in (figures_of(tmp_path / "two", mixed), one))
    np.testing.assert_allclose(losses, wanted[:3], rtol=0.05)
