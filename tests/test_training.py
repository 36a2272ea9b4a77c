"""The loop: the loss falls, only the named tensors change, kills change nothing, and nothing stale is ever used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speech_xl.checkpoints import check_checkpoint
from speech_xl.config import SSTConfig
from tests.tiny_training import SST, STAGE, TALKS, hearing_checkpoint, metrics, recipe, tensors, train, write_lines
from torch_backend.backend import Backend
from training import loop, network
from training.__main__ import main
from training.runner import Runner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hearing_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("lines") / "talks.jsonl", TALKS)


def test_the_loss_falls_and_validation_is_logged(model: Path, talks: Path, tmp_path: Path) -> None:
    train(model, tmp_path, recipe({"steps": 40, "train": ["lora_", "sst_"]}), talks, talks)
    found = metrics(tmp_path)
    losses = [found["loss"][step] for step in sorted(found["loss"])]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert {"validation/transcript/raw", "validation/transcript/2", "validation/absent/4"} <= set(found)
    assert found["learning_rate/sst_pool"][10] == pytest.approx(2 * found["learning_rate/."][10])
    assert list((tmp_path / "stages").glob("first-*/events.out.tfevents*"))


def test_the_model_is_a_checkpoint_that_a_backend_loads(model: Path, talks: Path, tmp_path: Path) -> None:
    out = train(model, tmp_path, recipe(), talks)
    config = check_checkpoint(out)
    assert config.sst == SSTConfig(**SST | {"ratios": (2, 4, 8)}) and config.sst.trained
    loaded = Backend.load(out, config).model
    assert torch.equal(loaded.decoder.layers[0].self_attn.sst_pool, tensors(out)["decoder.layers.0.self_attn.sst_pool"])


@pytest.mark.parametrize(
    "patterns, lora, moved",
    [
        (["sst_pool"], None, ["sst_pool"]),
        (["sst_", r"layers\.1\..*lora_"], {"rank": 2, "alpha": 2}, ["sst_", "layers.1.self_attn", "layers.1.mlp"]),
        ([r"mlp\.up_proj", "norm"], None, ["mlp.up_proj", "norm"]),
    ],
)
def test_only_the_named_tensors_change(
    model: Path, talks: Path, tmp_path: Path, patterns: list[str], lora: dict | None, moved: list[str]
) -> None:
    chosen = recipe({"train": patterns, "lora": lora, "steps": 3})
    start, _ = network.load_network(model, check_checkpoint(model), chosen.sst, end_id=2)
    before = tensors(model) | {n: t for n, t in start.state_dict().items() if "sst_" in n}
    after = tensors(train(model, tmp_path, chosen, talks))
    assert set(after) == set(before)
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert changed and all(any(part in n for part in moved) for n in changed)
    if lora is None:
        assert {part for part in moved if any(part in n for n in changed)} == set(moved)


def test_fresh_ssts_keep_one_token_of_each_block_per_head(model: Path) -> None:
    config = check_checkpoint(model)
    made, config = network.load_network(model, config, recipe().sst, end_id=5)
    for number, layer in enumerate(made.decoder.layers):
        attention = layer.self_attn
        assert not attention.sst_k_proj.weight.any() and not attention.sst_v_proj.weight.any()
        assert torch.equal(attention.sst_q_proj.weight, attention.q_proj.weight)
        for ratio in (2, 4, 8):
            weights = attention.sst_pool[:, :, list(config.sst.pool_columns(ratio))]
            assert (weights.sum(-1) == 1).all()
            assert [int(w.argmax()) for w in weights[0]] == [(number + h) % ratio for h in range(attention.kv_heads)]
    assert torch.equal(made.decoder.sst_embedding, made.decoder.embed_tokens.weight[5])


class Killed(Exception):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Break a run off in the middle of the step behind `steps`, after its weights have changed."""
    train_one, counted = loop.Loop._train, []

    def broken(self: loop.Loop, *arguments: object) -> int:
        done = train_one(self, *arguments)
        counted.append(done)
        if len(counted) > steps:
            raise Killed
        return done

    monkeypatch.setattr(loop.Loop, "_train", broken)


@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_killed_run_ends_with_the_same_weights(
    model: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    chosen = dataclasses.replace(recipe({"shift": 50, "uniform": 0.5}), save_minutes=0.0)
    straight = tensors(train(model, tmp_path / "straight", chosen, talks))
    with monkeypatch.context() as patch:
        kill_after(patch, killed_after)
        with pytest.raises(Killed):
            train(model, tmp_path / "killed", chosen, talks)
    assert not (tmp_path / "killed" / "model").exists()
    resumed = tensors(train(model, tmp_path / "killed", chosen, talks))
    assert set(resumed) == set(straight) and all(torch.equal(resumed[n], straight[n]) for n in straight)
    steps = sorted(metrics(tmp_path / "killed")["loss"])
    assert steps == list(range(1, 7))  # each once
    assert metrics(tmp_path / "killed")["loss"] == metrics(tmp_path / "straight")["loss"]


def test_a_stopped_run_says_so_and_goes_on(
    model: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"sst": SST, "stages": [STAGE]}))
    command = ["--model", str(model), "--data", str(talks), "--output", str(tmp_path / "out"), "--recipe", str(path)]
    train_one = loop.Loop._train

    def interrupted(self: loop.Loop, *arguments: object) -> int:
        if self.step == 2:
            loop.signal.raise_signal(loop.signal.SIGTERM)
        return train_one(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_train", interrupted)
        assert main(command) == 130
    assert "run the same command again" in capsys.readouterr().err
    (state,) = (tmp_path / "out").glob("stages/*/state.pt")
    assert torch.load(state, weights_only=True)["step"] == 3
    assert main(command) == 0 and not state.exists()


def test_nothing_stale_is_used_and_nothing_done_is_done_again(model: Path, talks: Path, tmp_path: Path) -> None:
    def folders() -> set[str]:
        return {p.name for p in (tmp_path / "stages").iterdir()}

    first = tensors(train(model, tmp_path, recipe(), talks))
    done = folders()
    when = {p: p.stat().st_mtime_ns for p in tmp_path.glob("stages/*/model/*")}
    train(model, tmp_path, recipe(), talks)
    assert folders() == done and when == {p: p.stat().st_mtime_ns for p in when}
    others = [
        (model, recipe({"steps": 7}), talks),
        (model, recipe(seed=4), talks),
        (model, recipe(sst=SST | {"horizon": 8}), talks),
        (model, recipe(), write_lines(tmp_path / "more.jsonl", TALKS[1:])),
        (hearing_checkpoint(tmp_path / "another", description="another"), recipe(), talks),
    ]
    for count, (start, chosen, data) in enumerate(others, len(done) + 1):
        out = tensors(train(start, tmp_path, chosen, data))
        assert len(folders()) == count
    assert all(torch.equal(first[n], t) for n, t in tensors(train(model, tmp_path, recipe(), talks)).items())
    assert out is not None


def test_a_stage_starts_from_what_the_one_before_left(model: Path, talks: Path, tmp_path: Path) -> None:
    answering = {"kind": "answering", "name": "answers", "lessons": [{"ratios": ["raw"]}], "train": ["lora_"]}
    out = train(model, tmp_path, recipe(answering, {"name": "memory", "train": ["sst_"], "lora": None}), talks)
    (middle,) = (tmp_path / "stages").glob("answers-*/model")
    last, between, start = tensors(out), tensors(middle), tensors(model)
    plain = [n for n in start if "sst_" not in n and n.startswith("decoder.layers")]
    assert all(torch.equal(last[n], between[n]) for n in plain)
    assert any(not torch.equal(between[n], start[n]) for n in plain)
    assert not check_checkpoint(middle).sst.trained and check_checkpoint(out).sst.trained


def test_accumulated_passes_and_checkpointed_layers_give_the_same_loss(
    model: Path, talks: Path, tmp_path: Path
) -> None:
    losses = []
    for number, change in enumerate(({}, {"accumulation": 4}, {"gradient_checkpointing": True})):
        train(model, tmp_path / str(number), recipe({"batch": 4, "steps": 4} | change), talks)
        losses.append([v for _, v in sorted(metrics(tmp_path / str(number))["loss"].items())])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)


def test_a_step_without_ssts_leaves_their_parameters_alone(model: Path, talks: Path, tmp_path: Path) -> None:
    chosen = recipe({"lessons": [{"ratios": ["raw"]}], "train": ["sst_"], "lora": None, "steps": 2})
    before, _ = network.load_network(model, check_checkpoint(model), chosen.sst, end_id=2)
    after = tensors(train(model, tmp_path, chosen, talks))
    pools = {n: t for n, t in before.state_dict().items() if "sst_pool" in n}
    assert pools and all(torch.equal(after[n], t) for n, t in pools.items())


def test_a_stage_may_end_by_the_clock(model: Path, talks: Path, tmp_path: Path) -> None:
    train(model, tmp_path, recipe({"steps": 10**6, "minutes": 0.001}), talks)
    (done,) = (tmp_path / "stages").glob("*/done.json")
    assert 0 < json.loads(done.read_text())["steps"] < 10**6


def test_adapters_are_named_and_scaled_as_pefts(model: Path) -> None:
    from training.export import changed_tensors
    from training.lora import LoraLinear, add_lora
    from training.recipe import LoraConfig

    made, _ = network.load_network(model, check_checkpoint(model), None, None)
    plain = made.decoder.layers[0].mlp.up_proj.weight.clone()
    assert add_lora(made, LoraConfig(rank=3, alpha=6.0, targets=r".*up_proj"), seed=0) == 2
    adapted = made.decoder.layers[0].mlp.up_proj
    assert isinstance(adapted, LoraLinear)
    assert adapted.lora_A.weight.shape == (3, 32) and adapted.lora_B.weight.shape == (48, 3)
    with torch.no_grad():
        adapted.lora_B.weight.normal_()
    changed = changed_tensors(made, set(), torch.float32)
    assert set(changed) - {n for n in changed if "sst_" in n} == {
        f"decoder.layers.{i}.mlp.up_proj.weight" for i in range(2)
    }
    merged = changed["decoder.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(merged, plain + 2.0 * adapted.lora_B.weight @ adapted.lora_A.weight)
    x = torch.randn(5, 32)
    torch.testing.assert_close(adapted(x), x @ merged.T)
    with pytest.raises(Exception, match=r"lora\.targets"):
        add_lora(made, LoraConfig(targets="nothing"), seed=0)


def test_a_kill_before_the_first_saved_state_leaves_no_trace(
    model: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: loop.Loop) -> None:
        path = self.folder.path / "metrics.csv"
        path.write_bytes(path.read_bytes()[:-7])  # in the middle of a row
        raise KeyboardInterrupt

    train(model, tmp_path / "whole", recipe(), talks)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(model, tmp_path / "killed", recipe(), talks)
    train(model, tmp_path / "killed", recipe(), talks)
    (path,) = (tmp_path / "killed" / "stages").glob("*/metrics.csv")
    whole, found = (metrics(tmp_path / name) for name in ("whole", "killed"))
    assert found["loss"] == whole["loss"]
    assert len(path.read_text().splitlines()) == 1 + sum(map(len, found.values()))


def test_a_wrong_start_is_one_sentence(model: Path, talks: Path, tmp_path: Path) -> None:
    without = hearing_checkpoint(tmp_path / "without", sst=None)
    for start, chosen, words in [
        (without, recipe(sst=None), "has no SSTs"),
        (model, recipe({"lessons": [{"ratios": [16]}]}), "the SSTs have 2, 4, 8"),
        (model, recipe({"train": ["nonsense"]}), "no tensor has such a name"),
        (model, recipe({"learning_rates": {"sst_": 0.1}}), "add a pattern to learning_rates"),
        (model, recipe({"max_tokens": 3, "batch": 1}), "raise max_tokens in the recipe"),
    ]:
        only = write_lines(tmp_path / "asked.jsonl", TALKS[:1]) if "max_tokens" in words else talks
        with pytest.raises(loop.RecipeError if "max_tokens" not in words else Exception, match=words):
            Runner(chosen, [only], None, tmp_path / "out").run(start)
        assert not (tmp_path / "out" / "model").exists()
