"""Checkpoints: what is checked before anything is loaded, and what each refusal says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file

from speech_xl import checkpoints
from speech_xl.checkpoints import check_checkpoint, expected_tensors, fingerprint, resolve_checkpoint
from speech_xl.config import ModelConfig
from speech_xl.config_file import from_dict, to_dict
from speech_xl.errors import CheckpointError
from speech_xl.model import SpeechModel
from tests.tiny import configs, save_checkpoint, tiny_config
from torch_backend.model import SpeechXL


@settings(max_examples=15, deadline=None)
@given(configs())
def test_expected_tensors_are_the_networks(config: ModelConfig) -> None:
    with torch.device("meta"):
        network = SpeechXL(config).state_dict()
    assert {name: tuple(t.shape) for name, t in network.items()} == expected_tensors(config)


@settings(max_examples=15)
@given(configs())
def test_configurations_survive_json(config: ModelConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "tiny", tiny_config())


def change_weights(folder: Path, name: str, array: np.ndarray | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    save_file(tensors | ({} if array is None else {name: array}), folder / "model.safetensors")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_weights(folder, "decoder.layers.1.mlp.up_proj.weight", None)
    with pytest.raises(CheckpointError, match=r"lacks the tensor decoder\.layers\.1\.mlp\.up_proj\.weight"):
        SpeechModel.load(str(folder), "torch")


def test_a_misshapen_tensor_is_named(folder: Path) -> None:
    change_weights(folder, "speech.encoder.conv1.bias", np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match=r"speech\.encoder\.conv1\.bias has shape \[3\].*needs \[16\]"):
        SpeechModel.load(str(folder), "torch")


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "Convert it first"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "is damaged"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be read"),
    ],
)
def test_a_broken_folder_is_one_sentence(folder: Path, break_it, sentence: str) -> None:
    break_it(folder)
    with pytest.raises(CheckpointError, match=sentence):
        SpeechModel.load(str(folder), "torch")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"decoder": {"num_key_value_heads": 3}}, "multiple of num_key_value_heads"),
        ({"decoder": {"head_dim": 7}}, "head_dim must be even"),
        ({"decoder": {"hidden_size": "wide"}}, "hidden_size must be a whole number"),
        ({"encoder": {"context_positions": 50}}, "context_positions leaves nothing"),
        ({"encoder": {"context_positions": 3}}, "must be multiples"),
        ({"sst": {"interval": 10}}, "must be a multiple of ratio"),
        ({"sst": {"default_ratio": 3}}, "default_ratio"),
        ({"sst": {"own_projections": False, "pooled": True}}, "sst.pooled need sst.own_projections"),
        ({"prompt": {"after_audio": "?"}}, "question"),
        ({"decoder": {"colour": 1}}, "unknown fields colour"),
        ({"encoder": {"d_model": [64, 64]}}, "d_model must be a whole number"),
        ({"prompt": {"after_audio": 5}}, "prompt.after_audio must be text, not 5"),
        ({"prompt": {"before_audio": "\ud800"}}, "prompt.before_audio must be text"),
        ({"prompt": {"end_tokens": [[]]}}, "prompt.end_tokens must be a list, each of it text"),
        ({"prompt": {"spoken": "no"}}, "prompt.spoken must be true or false"),
        ({"decoder": {"rope_theta": "1e4"}}, "decoder.rope_theta must be a number, not '1e4'"),
        ({"decoder": {"rope_theta": float("nan")}}, "decoder.rope_theta must be a number"),
        ({"decoder": {"rms_norm_eps": -1.0}}, "rms_norm_eps must be more than 0"),
        ({"sst": {"horizon": -1}}, "sst.horizon must be a whole number from 0"),
        ({"sst": {"ratios": 4}}, "sst.ratios must be a list, each of it a whole number"),
        ({"dtype": "float64"}, "dtype must be float32, float16, bfloat16, not 'float64'"),
        ({"dtype": ["float32"]}, "dtype must be text"),
        ({"name": "x\ud800" * 300}, "name must be text"),
        ({"quantization": {"bits": [4], "group_size": 32}}, "quantization must be an object or null"),
        ({"evidence_layers": 10**30}, "evidence_layers must be a list"),
        ({"encoder": None}, "encoder must be an object, not None"),
    ],
)
def test_contradictions_in_a_configuration_are_named(changes: dict, sentence: str) -> None:
    data = json.loads(json.dumps(to_dict(tiny_config())))
    for part, values in changes.items():
        data[part] = data[part] | values if part in ("encoder", "decoder", "sst", "prompt") and values else values
    with pytest.raises(CheckpointError, match=sentence):
        from_dict(data)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2**20}, {"vocab_size": 2**40}])
def test_a_configuration_beyond_any_model_is_refused_at_once(changes: dict) -> None:
    data = to_dict(tiny_config())
    data["decoder"] |= changes
    with pytest.raises(CheckpointError, match="more than any model has"):
        from_dict(data)


def test_a_configuration_nested_too_deep_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        check_checkpoint(tmp_path)


def test_a_missing_field_is_named() -> None:
    data = to_dict(tiny_config())
    del data["adapter"]["stack"]
    with pytest.raises(CheckpointError, match="adapter lacks stack"):
        from_dict(data)


def test_the_fingerprint_is_of_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    twin = save_checkpoint(tmp_path / "twin", tiny_config())
    assert fingerprint(folder) == fingerprint(twin)
    other = save_checkpoint(tmp_path / "other", tiny_config(), seed=1)
    assert fingerprint(folder) != fingerprint(other)


def test_names_are_resolved_without_guessing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_checkpoint("nano") == checkpoints.EMBEDDED_FOLDER
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)  # where small is not
    assert resolve_checkpoint(None) == checkpoints.EMBEDDED_FOLDER
    assert resolve_checkpoint(str(folder)) == folder
    for name in ("nowhere", "/no/such/folder", "a/b/c", "~no-such-user/model"):
        with pytest.raises(CheckpointError, match="no checkpoint folder"):
            resolve_checkpoint(name)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        resolve_checkpoint("someone/something-that-is-not-here")
    assert check_checkpoint(folder).name == "tiny"
