"""MLX's decoder against mlx-lm's own Qwen2 and Llama, which share no code with it."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest

from speech_xl.config import DecoderConfig
from speech_xl.storage import memory_storage
from speech_xl.visibility import text_mask
from tests.tiny import tiny_config

pytest.importorskip("mlx.core", reason="MLX is not installed")
pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models import qwen2 as qwen

from mlx_backend.decoder import Decoder
from mlx_backend.memory import KeyValues, TextCache


def tiny_decoder(config: DecoderConfig) -> Decoder:
    rng = np.random.default_rng(0)
    decoder = Decoder(config, None)
    shapes = [(name, array.shape) for name, array in tree_flatten(decoder.parameters())]
    drawn = [
        (name, mx.array(rng.normal(1.0 if "norm" in name else 0.0, 0.3, shape), mx.float32)) for name, shape in shapes
    ]
    decoder.load_weights(drawn)
    return decoder


def reference(family: ModuleType, decoder: Decoder):
    """The same weights in mlx-lm's module of that family."""
    fields = dataclasses.asdict(decoder.config)
    arguments = family.ModelArgs.from_dict(fields | {"model_type": family.__name__.rpartition(".")[2]})
    model = family.Model(arguments)
    weights = tree_flatten(decoder.parameters())
    named = [(name if name.startswith("lm_head") else f"model.{name}", array) for name, array in weights]
    model.load_weights(named)  # strict: all of them, and no others
    return model


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("family", [qwen, llama], ids=["qwen2", "llama"])
def test_plain_text_gives_the_logits_of_mlx_lm(family: ModuleType, is_tied: bool) -> None:
    config = dataclasses.replace(
        tiny_config().decoder, attention_bias=family is qwen, tie_word_embeddings=is_tied, max_position_embeddings=64
    )
    decoder = tiny_decoder(config)
    ids = mx.array([[5, 9, 2, 17, 30, 4, 4, 11]])
    packing = memory_storage(16, config.head_dim)
    heads, width, rows = config.num_key_value_heads, config.head_dim, ids.shape[1]
    memory = [KeyValues(heads, width, mx.float32, packing, decoder.turned) for _ in decoder.layers]
    caches = [TextCache(*[mx.zeros((1, heads, 0, width))] * 2) for _ in decoder.layers]
    mask = text_mask(np.zeros((1, rows), bool), rows)
    mask = mx.array(mask) if isinstance(mask, np.ndarray) else mask
    ours, _ = decoder.text(ids, decoder.rotation(mx.arange(rows)[None]), memory, caches, mask)
    theirs = reference(family, decoder)(ids)[:, -1]
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-4, atol=1e-4)
