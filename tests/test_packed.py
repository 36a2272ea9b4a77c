"""Weights that stay in 16 bits: the same numbers as float32 weights, and nothing of them is held twice."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from speech_xl.config import ModelConfig
from speech_xl.schedule import FixedRatio, Scheduler
from tests.tiny import save_checkpoint, tiny_config, tiny_recognizer_config
from torch_backend import packed
from torch_backend.backend import Backend
from torch_backend.linear import Linear
from torch_backend.packed import PackedLinear, can_pack

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="FBGEMM is for x86 processors"
)


@pytest.fixture(autouse=True)
def little_ones_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 2)


def checkpoint(folder: Path, config: ModelConfig, dtype: torch.dtype) -> Path:
    """Numbers that 16 bits hold, stored as `dtype`."""
    path = save_checkpoint(folder, config) / "model.safetensors"
    weights = {name: weight.bfloat16().half() for name, weight in load_file(path).items()}
    weights = {name: weight.where(weight.abs() > 2**-10, 0) for name, weight in weights.items()}
    save_file({name: weight.to(dtype).contiguous() for name, weight in weights.items()}, path)
    return folder


@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1), (3, 2), (40,), (2, 300)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 7), (576, 192), (33, 515)])
def test_it_is_the_product_of_float32_weights(
    shape: tuple[int, ...], has_bias: bool, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    usual = torch.nn.Linear(inputs, outputs, bias=has_bias).half().float().requires_grad_(False)
    layer = PackedLinear(usual.weight.half(), None if usual.bias is None else usual.bias.half())
    layer.pack()
    x = torch.randn(inputs, *shape).movedim(0, -1)  # not contiguous
    torch.testing.assert_close(layer(x), usual(x), rtol=1e-5, atol=1e-5)
    state = layer.state_dict()
    assert state.keys() == usual.state_dict().keys() and torch.equal(state["weight"], usual.weight)


def test_only_what_16_bits_hold_is_packed() -> None:
    assert can_pack(torch.ones(2, 2, dtype=torch.float16)) and can_pack(torch.ones(2, 2, dtype=torch.bfloat16))
    assert not can_pack(torch.ones(2, 2)) and not can_pack(torch.full((2, 2), 1e5, dtype=torch.bfloat16))
    assert not can_pack(torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2))
    assert not can_pack(torch.ones(1, 1, dtype=torch.float16))  # too little to gain anything


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("has_words", [False, True])
def test_a_checkpoint_computes_as_in_float32(dtype: torch.dtype, has_words: bool, tmp_path: Path) -> None:
    config = tiny_recognizer_config() if has_words else tiny_config()
    ours, theirs = (
        Backend.load(checkpoint(tmp_path / str(kind), config, kind), config) for kind in (dtype, torch.float32)
    )
    found = []
    words = np.random.default_rng(0).integers(0, config.decoder.vocab_size, 70).tolist()
    for backend in (ours, theirs):
        state = backend.start([3, 1, 4])
        backend.hear_words(state, words)
        scheduler = Scheduler(config.sst.interval, FixedRatio(4), 3, horizon=config.sst.horizon)
        for plan in scheduler.plan_all(70):
            backend.close_intervals([(state, [plan])])
        memory = backend.export_memory(state)
        steps = list(itertools.islice(backend.answer(state, [5, 6, 7], scheduler.base), 6))
        mel = np.random.default_rng(1).standard_normal((2, 80, config.encoder.window_frames)).astype(np.float32)
        read = [r.attention for r in backend.recognize(mel)] if has_words else []
        scores = backend.logits(state, [5, 6, 7], scheduler.base)
        found.append((memory["keys"], memory["values"], scores, *(s.slot_weights for s in steps), *read))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


def test_packed_weights_are_held_once_and_others_stay_as_they_are(tmp_path: Path) -> None:
    config = tiny_recognizer_config()
    half, plain = (
        Backend.load(checkpoint(tmp_path / str(kind), config, kind), config).model
        for kind in (torch.float16, torch.float32)
    )
    assert not [m for m in plain.modules() if isinstance(m, PackedLinear)]
    for part in (half.decoder, half.speech.recognizer):
        left = {name.split(".")[-1] for name, m in part.named_modules() if isinstance(m, Linear)}
        assert left == ({"q_proj", "k_proj", "v_proj"} if part is half.decoder else set())  # which intervals need
        assert all(parameter.dtype == torch.float32 for parameter in part.parameters())
        layers = [m for m in part.modules() if isinstance(m, PackedLinear)]
        assert layers and not any(hasattr(layer, "_stored") for layer in layers)
    ours, theirs = half.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_type_of_number_is_not_packed(tmp_path: Path) -> None:
    config = tiny_config()
    backend = Backend.load(checkpoint(tmp_path / "half", config, torch.float16), config, dtype=torch.float64)
    assert not [m for m in backend.model.modules() if isinstance(m, PackedLinear)]


def test_loading_does_not_wait_for_packing_and_whoever_computes_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, original = threading.Event(), PackedLinear.pack
    monkeypatch.setattr(PackedLinear, "pack", lambda layer: go.wait() and original(layer))
    config = tiny_config()
    backend = Backend.load(checkpoint(tmp_path / "half", config, torch.float16), config)  # returns
    asker = threading.Thread(target=backend.start, args=([3, 1, 4],))
    asker.start()
    assert asker.is_alive()
    go.set()
    asker.join(10)
    assert not asker.is_alive()


def test_what_goes_wrong_while_packing_is_said_to_whoever_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(layer: PackedLinear) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(PackedLinear, "pack", fail)
    config = tiny_config()
    backend = Backend.load(checkpoint(tmp_path / "half", config, torch.float16), config)
    with pytest.raises(MemoryError, match="no room"):
        backend.start([3])
