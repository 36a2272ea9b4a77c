"""The plan of a run's memory: weights, gradients and moments to the byte, activations as a meta-device run keeps them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from tests.tiny import TOKENIZER, save_checkpoint, tiny_config, tiny_recognizer_config
from tests.tiny_training import STAGE, recipe, write_lines
from training import attention
from training.__main__ import main
from training.batch import Batch, Batcher
from training.data import Question, Recording
from training.network import Network, choose_trained, load_network, parameter_groups
from training.plan import Rows, kept_by_layer, meta_network, plan, rows_of, stage_memory, text_bytes
from training.recipe import Recipe, Stage
from training.samples import Sample

SST = {"interval": 32, "ratios": [2, 4, 8], "default_ratio": 4, "pooled": True}
LONG = {"max_tokens": 512, "transcripts": 0.0, "questions": 4, "lessons": [{"ratios": [4]}], "batch": 1}
TRAINED = [
    {},
    {"lora": None, "train": ["sst_"]},
    {"lora": None, "train": [r"decoder\.layers"]},
    {"gradient_checkpointing": True},
]


def setting(change: dict) -> tuple[Recipe, Stage, ModelConfig]:
    chosen = recipe(LONG | change, sst=SST)
    decoder = dataclasses.replace(tiny_config().decoder, num_hidden_layers=4)
    return chosen, chosen.stages[0], dataclasses.replace(tiny_recognizer_config(sst=chosen.sst), decoder=decoder)


def longest(stage: Stage, config: ModelConfig) -> Batch:
    words = np.random.default_rng(0).integers(3, 200, stage.max_tokens).astype(np.int32)
    asked = tuple(Question("what is it " * 3, "a b " * 3) for _ in range(stage.questions))
    sample = Sample(stage.max_tokens, Recording("here", heard="a", questions=asked), words=words)
    return Batcher(Prompt(TOKENIZER, config.prompt), config, stage, 1).training([sample], [0], 0, 1.0, None)[0]


def kept(network: Network, batch: Batch, device: torch.device, is_mixed: bool) -> tuple[int, int]:
    """Bytes of all that a pass keeps for its backward pass, parameters apart; and of weights as bfloat16."""
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage._cdata] = storage.nbytes(), tensor  # held, so that no other takes its place
        return tensor

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    with saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        network(
            tensor(batch.speech.rows),
            None,
            prefix_ids=tensor(batch.prefix_ids),
            text_ids=tensor(batch.text_ids),
            query_positions=tensor(batch.query_positions),
            key_positions=tensor(batch.key_positions),
            attend=attention.BlockAttention(batch.rows, device),
            ssts=batch.ssts,
            answer_rows=tensor(batch.answer_rows),
            pooled=[(c.rows, tensor(c.tokens), tensor(c.columns)) for c in batch.pooled],
            targets=tensor(batch.targets),
        )
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    casts = sum(p.numel() for p in network.decoder.parameters() if p.dim() == 2) * 2 if is_mixed else 0
    return sum(size for key, (size, _) in found.items() if key not in own), casts


@pytest.mark.parametrize("change", TRAINED, ids=["lora", "ssts", "everything", "checkpointed"])
@pytest.mark.parametrize("is_mixed", [False, True], ids=["float32", "mixed"])
def test_activations_are_what_a_run_on_the_meta_device_keeps(
    change: dict, is_mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KEPT_NUMBERS", 0)  # as in a long recording
    _, stage, config = setting(change)
    batch, trained = longest(stage, config), set(meta_network(config, stage)[1])
    if is_mixed:  # the meta device has no autocast; tensors without numbers that say they are a CPU's have
        with FakeTensorMode(allow_non_fake_inputs=True):
            network = Network(config)
            choose_trained(network, stage, 0)
            real, casts = kept(network, batch, torch.device("cpu"), True)
    else:
        real, casts = kept(meta_network(config, stage)[0], batch, torch.device("meta"), False)
    rows = Rows(batch.speech_tokens, batch.ssts, len(batch.text_ids), len(batch.targets), len(batch.prefix_ids))
    layer = kept_by_layer(config.decoder, trained, stage, rows, is_mixed)
    if stage.gradient_checkpointing:
        layer = rows.total * config.decoder.hidden_size * 4
    rotations = 4 * rows.total * config.decoder.head_dim * 4
    planned = config.decoder.num_hidden_layers * layer + rotations + text_bytes(config.decoder, rows)
    assert abs(planned - real) < (0.05 * real if not stage.gradient_checkpointing else 1.1 * rotations) + casts


@pytest.mark.parametrize("change", TRAINED[:3])
def test_weights_gradients_and_moments_are_counted_to_the_byte(change: dict, tmp_path: Path) -> None:
    chosen, stage, config = setting(change)
    model = save_checkpoint(tmp_path / "tiny", config)
    network, _ = load_network(model, config, chosen.sst, 2)
    trained = choose_trained(network, stage, 0)
    optimizer = torch.optim.AdamW(parameter_groups(trained, stage))
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    (memory,) = plan(chosen, config, [1])["first"]
    assert memory.weights == sum(p.numel() * 4 for p in network.parameters())
    assert memory.gradients == sum(p.grad.numel() * 4 for p in trained.values())
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    assert memory.optimizer == sum(t.numel() * 4 for t in moments)


def test_shares_of_a_plan_are_what_torch_gives_each_process() -> None:
    _, stage, config = setting({})
    network, trained = meta_network(config, stage)
    for gpus in (2, 4, 8):
        memory = stage_memory(stage, config, network, trained, gpus, is_sharded=True, is_mixed=False)
        largest = [p.detach().chunk(gpus)[0] for p in network.parameters()]
        assert memory.weights == sum(t.numel() * 4 for t in largest)


def test_a_stage_that_packs_is_held_to_it() -> None:
    _, stage, config = setting({"batch": 16, "pack": 2000})
    assert 1990 <= rows_of(stage, config, 1).total <= 2000
    assert rows_of(dataclasses.replace(stage, pack=100), config, 1) == rows_of(
        dataclasses.replace(stage, batch=1, pack=None), config, 1
    )
    assert rows_of(dataclasses.replace(stage, pack=None), config, 1).total > 4 * 2000
    assert rows_of(dataclasses.replace(stage, pack=None), config, 16).speech == 512


def test_the_command_prints_a_plan_from_a_configuration_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from speech_xl.config_file import save_config

    _, _, config = setting({})
    save_config(config, tmp_path)
    path = write_lines(tmp_path / "recipe.json", [{"sst": SST, "stages": [STAGE | LONG]}])
    command = ["--plan", "--model", str(tmp_path), "--recipe", str(path)]
    assert main([*command, "--gpus", "1", "2", "--gpu-memory", "1MB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["first", "1", "whole"],
        ["first", "2", "whole"],
        ["first", "2", "sharded"],
    ]
    assert all(line.endswith("too much") for line in lines[1:])
    assert main(command) == 0 and capsys.readouterr().out.count("fits") == 5
    for more, words in ((["--gpus", "0"], "from 1, not 0"), (["--gpu-memory", "much"], "not an amount of memory")):
        assert main([*command, *more]) == 2
        assert words in capsys.readouterr().err
    for wrong in (["--model", "m"], ["--model", "m", "--data", "d", "--output", "o", "--gpus", "2"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
