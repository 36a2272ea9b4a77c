"""Quantized memories and quantized weights: bounded error, exact bytes, the same on both backends."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from speech_xl.config import ModelConfig
from speech_xl.config_file import save_config
from speech_xl.conversation import Listening, ask
from speech_xl.errors import BackendError, CheckpointError
from speech_xl.memory import AudioMemory, load_memory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.storage import memory_storage
from tests.tiny import TOKENIZER, save_checkpoint, tiny_config, tiny_model, write_sound
from torch_backend import memory as torch_memory

mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
from mlx import nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from mlx_backend import memory as mlx_memory  # noqa: E402
from mlx_backend.model import SpeechXL  # noqa: E402

QUESTION = "what drink is order 4?"


def heard(model: SpeechModel, path: Path) -> AudioMemory:
    listening = Listening(model, path, 4)
    list(listening)
    return listening.memory


def answered(model: SpeechModel, memory: AudioMemory) -> str:
    asking = ask(model, memory, QUESTION, longest=10)
    list(asking)
    return asking.answer.answer


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([8, 4]), st.sampled_from([6, 8, 48, 80, 128]), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_packed_rows_are_within_half_a_step_on_both_backends(bits: int, width: int, scale: float, seed: int) -> None:
    storage = memory_storage(bits, width)
    rows = (scale * np.random.default_rng(seed).standard_normal((1, 2, 5, width))).astype(np.float32)
    rows[0, 0, 0] = 7.0  # a group without any spread
    on_torch = torch_memory.pack(torch.from_numpy(rows), storage)
    on_mlx = mlx_memory.pack(mx.array(rows), storage)
    for ours, theirs in zip(on_torch, on_mlx, strict=True):
        np.testing.assert_array_equal(ours.numpy(), np.array(theirs))
    back = torch_memory.unpack(on_torch, storage).numpy()
    np.testing.assert_allclose(np.array(mlx_memory.unpack(on_mlx, storage)), back, rtol=1e-6, atol=1e-6 * scale)
    half_step = on_torch[1].numpy().repeat(storage.group_size, -1) / 2
    assert (np.abs(back - rows) <= half_step * 1.001 + 1e-5 * scale).all()


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_quantized_memory_takes_the_bytes_of_the_formula_and_survives_its_file(
    backend: str, tmp_path: Path, tiny_checkpoint: Path, recording: Path
) -> None:
    sizes = {}
    for bits in (16, 8, 4):
        model = SpeechModel.load(str(tiny_checkpoint), backend, bits)
        memory = heard(model, recording)
        groups = model.config.kv_values_per_slot // 8  # head_dim 8 is one group: a scale and a lowest value
        expected = memory.slots * (model.config.kv_values_per_slot * bits // 8 + groups * 2 * 4)
        sizes[bits] = memory.bytes
        assert memory.bytes == memory.slots * model.bytes_per_slot
        assert memory.bytes == (expected if bits < 16 else memory.slots * model.config.kv_values_per_slot * 4)
        save_memory(memory, tmp_path / "talk.sxl", model)
        again = load_memory(tmp_path / "talk.sxl", model)
        assert (again.bytes, answered(model, again)) == (memory.bytes, answered(model, memory))
    assert sizes[4] < sizes[8] < sizes[16]


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_memories_agree_across_backends(
    bits: int, tmp_path: Path, tiny_checkpoint: Path, recording: Path
) -> None:
    models = {name: SpeechModel.load(str(tiny_checkpoint), name, bits) for name in ("torch", "mlx")}
    memories = {name: heard(model, recording) for name, model in models.items()}
    arrays = {name: models[name].backend.export_memory(memories[name].state) for name in models}
    for part in ("keys", "values"):
        apart = np.abs(arrays["torch"][part] - arrays["mlx"][part])
        # A number between two codes may fall to either side: one step apart, and seldom.
        assert np.mean(apart > 1e-3) < 0.02
    save_memory(memories["torch"], tmp_path / "talk.sxl", models["torch"])
    crossed = load_memory(tmp_path / "talk.sxl", models["mlx"])
    assert answered(models["mlx"], crossed) == answered(models["torch"], memories["torch"])


def test_what_was_kept_is_close_to_what_was_computed(tiny_checkpoint: Path, recording: Path) -> None:
    kept = {}
    for bits in (16, 8, 4):
        model = SpeechModel.load(str(tiny_checkpoint), "torch", bits)
        kept[bits] = model.backend.export_memory(heard(model, recording).state)["values"]
    error = {bits: np.abs(kept[bits] - kept[16]).mean() / np.abs(kept[16]).mean() for bits in (8, 4)}
    assert 0 < error[8] < 0.03
    assert error[8] < error[4] < 0.4


def test_other_bits_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(BackendError, match="16, 8 or 4"):
        SpeechModel.load(str(tiny_checkpoint), "torch", 3)


def quantized_checkpoint(folder: Path, config: ModelConfig) -> Path:
    """As a converter writes it: the decoder's linear layers and embeddings in MLX's packed format."""
    model = SpeechXL(dataclasses.replace(config, quantization=None, layout="torch"))
    state = {name: mx.array(t.numpy()) for name, t in tiny_model(config).state_dict().items()}
    model.load_weights(list(model.sanitize(state).items()))
    nn.quantize(model.decoder, **config.quantization)
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    save_config(config, folder)
    TOKENIZER.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("bits", "group_size", "tied"), [(4, 32, True), (8, 64, False)])
def test_quantized_weights_answer_the_same_on_both_backends(
    bits: int, group_size: int, tied: bool, tmp_path: Path, recording: Path
) -> None:
    config = tiny_config(
        decoder__hidden_size=64,
        decoder__intermediate_size=64,
        decoder__num_attention_heads=4,
        decoder__num_key_value_heads=4,
        decoder__head_dim=16,
        decoder__tie_word_embeddings=tied,
        layout="mlx",
        quantization={"group_size": group_size, "bits": bits},
    )
    folder = str(quantized_checkpoint(tmp_path / "model", config))
    models = {name: SpeechModel.load(folder, name) for name in ("torch", "mlx")}
    memories = {name: heard(model, recording) for name, model in models.items()}
    arrays = {name: models[name].backend.export_memory(memories[name].state) for name in models}
    for part in ("keys", "values"):
        np.testing.assert_allclose(arrays["torch"][part], arrays["mlx"][part], atol=1e-3, rtol=1e-3)
    assert answered(models["torch"], memories["torch"]) == answered(models["mlx"], memories["mlx"])
    path = tmp_path / "talk.sxl"
    save_memory(memories["mlx"], path, models["mlx"])
    assert answered(models["torch"], load_memory(path, models["torch"])) == answered(models["mlx"], memories["mlx"])


def test_both_layouts_load_on_both_backends(tmp_path: Path) -> None:
    torch_layout = save_checkpoint(tmp_path / "torch", tiny_config())
    mlx_layout = tmp_path / "mlx"
    mlx_layout.mkdir()
    state = load_file(torch_layout / "model.safetensors")
    state = {n: t.transpose(1, 2).contiguous() if t.ndim == 3 else t for n, t in state.items()}
    save_file(state, mlx_layout / "model.safetensors")
    save_config(tiny_config(layout="mlx"), mlx_layout)
    TOKENIZER.save(str(mlx_layout / "tokenizer.json"))
    path = write_sound(tmp_path / "talk.wav", 2.0)
    exported = []
    for folder in (torch_layout, mlx_layout):
        for backend in ("torch", "mlx"):
            model = SpeechModel.load(str(folder), backend)
            exported.append(model.backend.export_memory(heard(model, path).state)["keys"])
    for other in exported[1:]:
        np.testing.assert_allclose(other, exported[0], atol=1e-4, rtol=1e-3)


def test_a_misshapen_packed_tensor_is_named(tmp_path: Path) -> None:
    config = tiny_config(
        decoder__hidden_size=64,
        decoder__intermediate_size=64,
        decoder__num_attention_heads=4,
        decoder__num_key_value_heads=4,
        decoder__head_dim=16,
        layout="mlx",
        quantization={"group_size": 32, "bits": 4},
    )
    folder = quantized_checkpoint(tmp_path / "model", config)
    tensors = load_file(folder / "model.safetensors")
    name = "decoder.layers.0.self_attn.k_proj.scales"
    save_file(tensors | {name: tensors[name][:, :1].contiguous()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"k_proj\.scales has shape \[64, 1\]"):
        SpeechModel.load(str(folder), "mlx")


def test_an_impossible_quantization_is_refused() -> None:
    with pytest.raises(CheckpointError, match="4 or 8"):
        tiny_config(quantization={"group_size": 32, "bits": 5})
