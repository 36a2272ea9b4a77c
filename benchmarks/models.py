"""Models to measure: the shipped ones, any checkpoint, and random weights of a named shape, made where they are used.

Random weights compute as fast as trained ones, so the largest shape needs no download. It knows shapes, not speed.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from speech_xl.backend import Backend, choose_backend, load_backend
from speech_xl.checkpoints import EMBEDDED_FOLDER, check_checkpoint, resolve_checkpoint
from speech_xl.config import (
    AdapterConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    SSTConfig,
)
from speech_xl.config_file import load_config, save_config
from speech_xl.errors import BackendError, CheckpointError
from speech_xl.model import SpeechModel
from speech_xl.prompt import Prompt

Horizon = str | int | None  # OWN_HORIZON, memory slots, or None: all of them
OWN_HORIZON = "own"  # the one that the checkpoint was trained with
RATIOS = (1, 2, 4, 8, 16)


def qwen_7b() -> ModelConfig:
    """Whisper small's encoder before Qwen2.5-7B: 12.5 speech tokens a second."""
    return ModelConfig(
        encoder=EncoderConfig(80, 768, 12, 12, 3072, 1500),
        adapter=AdapterConfig(stack=4, hidden_size=3584, bias=True),
        decoder=DecoderConfig(152_064, 3584, 18_944, 28, 28, 4, 128, 1_000_000.0, tie_word_embeddings=False),
        sst=SSTConfig(interval=256, ratios=RATIOS, default_ratio=8),
        evidence_layers=(14, 15),
        dtype="bfloat16",
        name="random-7b",
    )


def tiny() -> ModelConfig:
    """A shape of the same kind that any processor finishes in a second."""
    return ModelConfig(
        encoder=EncoderConfig(80, 32, 2, 2, 64, 1500),
        adapter=AdapterConfig(stack=4, hidden_size=64, bias=True),
        decoder=DecoderConfig(1024, 64, 128, 3, 4, 2, 16, 1_000_000.0, tie_word_embeddings=False),
        sst=SSTConfig(interval=64, ratios=RATIOS, default_ratio=8),
        evidence_layers=(1,),
        name="random-tiny",
    )


RANDOM: dict[str, Callable[[], ModelConfig]] = {"random-7b": qwen_7b, "random-tiny": tiny}


def load_model(name: str, backend: str, horizon: Horizon = OWN_HORIZON, bits: int = 16) -> SpeechModel:
    """A shipped model, checkpoint folder or random shape. `horizon`: memory slots an interval sees, None all of them."""
    if name in RANDOM:
        config = with_horizon(dataclasses.replace(RANDOM[name](), prompt=load_config(EMBEDDED_FOLDER).prompt), horizon)
        made = random_backend(choose_backend(backend)[0], config, bits)
        return in_memory(config, made)
    folder = resolve_checkpoint(name)
    config = with_horizon(check_checkpoint(folder), horizon)
    return SpeechModel(folder, config, Prompt.load(folder, config), load_backend(backend, folder, config, bits))


def with_horizon(config: ModelConfig, horizon: Horizon) -> ModelConfig:
    """The same configuration with another listening horizon; CheckpointError without SSTs, which alone have one."""
    if isinstance(horizon, str):
        return config
    if config.sst is None:
        raise CheckpointError(f"{config.name} has no SSTs, so no listening horizon can be set; leave out --horizon.")
    return dataclasses.replace(config, sst=dataclasses.replace(config.sst, horizon=horizon))


def in_memory(config: ModelConfig, backend: Backend) -> SpeechModel:
    """A SpeechModel around weights that lie in no folder, with nano's tokenizer."""
    with tempfile.TemporaryDirectory() as folder:  # what a model is known by is read from a folder
        save_config(config, Path(folder))
        return SpeechModel(Path(folder), config, Prompt.load(EMBEDDED_FOLDER, config), backend)


def weight_itemsize(backend: Any) -> int:
    """Bytes of one of the decoder's weights as a token of an answer reads it."""
    if backend.name == "torch":
        from torch_backend.packed import PackedLinear

        if any(isinstance(module, PackedLinear) for module in backend.model.decoder.modules()):
            return 2
    return backend.itemsize


def random_backend(name: str, config: ModelConfig, bits: int) -> Backend:
    """Random weights, the same at every call, in the number format that the backend computes in."""
    makers = {"torch": random_torch, "mlx": random_mlx}
    if name not in makers:
        raise BackendError(f"Random weights are not made for the backend {name}; measure {' or '.join(makers)}.")
    return makers[name](config, bits)


def random_torch(config: ModelConfig, bits: int) -> Backend:
    """On the GPU if there is one, in the backend's own number format there."""
    import torch

    from torch_backend.backend import FAST_DTYPE
    from torch_backend.backend import Backend as TorchBackend
    from torch_backend.model import SpeechXL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(FAST_DTYPE[device])
    torch.manual_seed(0)
    try:
        with torch.device(device):
            model = SpeechXL(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:  # small enough that nothing overflows in 28 layers
                parameter.normal_(0, 0.02)
    return TorchBackend(model, config, bits)


def random_mlx(config: ModelConfig, bits: int) -> Backend:
    """On MLX's default device, all of it on the thread that will compute."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    from mlx_backend.backend import Backend as MLXBackend
    from mlx_backend.model import SpeechXL
    from mlx_backend.worker import Worker

    worker = Worker()

    def build() -> Any:
        mx.random.seed(0)
        kind = getattr(mx, config.dtype) if mx.default_device() == mx.gpu else mx.float32
        model = SpeechXL(config)

        def draw(name: str, old: mx.array) -> mx.array:
            return old.astype(kind) if "norm" in name else mx.random.normal(old.shape, kind, scale=0.02)

        model.update(tree_map_with_path(draw, model.parameters()))
        mx.eval(model.parameters())
        return model

    return MLXBackend(worker.run(build), config, worker, bits)
