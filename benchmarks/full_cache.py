"""The same weights in other people's decoders, which keep every token's key and value: transformers' and mlx-lm's.

Both are built around the arrays of a loaded backend, so nothing is held twice. A wrapper hears tokens, reads a question
and says what comes next, as a user of these libraries would do it. It knows no time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any, Protocol

from speech_xl.backend import Backend
from speech_xl.config import DecoderConfig
from speech_xl.errors import BackendError


class FullCache(Protocol):
    """A decoder that keeps everything it reads."""

    name: str

    def hear(self, ids: list[int]) -> None:
        """Append the keys and values of tokens."""

    def answer(self, ids: list[int]) -> Generator[int]:
        """Read a question and go on greedily; closing the iterator leaves the cache as it was before."""

    def bytes(self) -> int:
        """Of the keys and values that it holds."""


def full_cache(backend: Backend) -> FullCache:
    """The library that belongs to a backend, with that backend's decoder weights."""
    return (TransformersCache if backend.name == "torch" else MLXCache)(backend)


def family(config: DecoderConfig) -> str:
    """Which published architecture a decoder is; BackendError if these libraries have none with its biases."""
    if config.attention_bias and not config.attention_output_bias and not config.mlp_bias:
        return "qwen2"
    if config.attention_bias == config.attention_output_bias:
        return "llama"
    raise BackendError("This decoder's biases are neither Qwen2's nor Llama's; compare another checkpoint.")


class TransformersCache:
    """transformers' Qwen2 or Llama with its DynamicCache and fused attention (sdpa)."""

    name = "transformers"

    def __init__(self, backend: Any):
        import torch
        import transformers

        c = backend.config.decoder
        fields = dataclasses.asdict(c)
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
        kind = {"qwen2": "Qwen2", "llama": "Llama"}[family(c)]
        config = getattr(transformers, f"{kind}Config")(**fields, attn_implementation="sdpa")
        weights = {
            name if name.startswith("lm_head") else f"model.{name}": tensor
            for name, tensor in backend.model.decoder.state_dict().items()
            if "sst_" not in name
        }
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        with torch.device("meta"):
            self._model = getattr(transformers, f"{kind}ForCausalLM")(config)
        self._model.load_state_dict(weights, assign=True)
        self._model.model.rotary_emb = type(self._model.model.rotary_emb)(config).to(weights["lm_head.weight"].device)
        self._model.eval().requires_grad_(False)
        self._cache = transformers.DynamicCache(config=config)

    def _read(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            given = torch.tensor([ids], device=self._model.device)
            return self._model(input_ids=given, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[
                0, -1
            ]

    def hear(self, ids: list[int]) -> None:
        self._read(ids)

    def answer(self, ids: list[int]) -> Generator[int]:
        heard = self._cache.get_seq_length()
        try:
            while True:
                token = int(self._read(ids).argmax())
                yield token
                ids = [token]
        finally:
            self._cache.crop(heard - self._cache.get_seq_length())  # a negative number: as many from the end

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self._cache.layers for t in (layer.keys, layer.values))


class MLXCache:
    """mlx-lm's Qwen2 or Llama with its KVCache. All work runs on the backend's own thread, as MLX wants it."""

    name = "mlx-lm"

    def __init__(self, backend: Any):
        import importlib

        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.models.cache import make_prompt_cache

        kind = family(backend.config.decoder)
        module = importlib.import_module(f"mlx_lm.models.{kind}")
        fields = dataclasses.asdict(backend.config.decoder) | {"model_type": kind}
        self._mx, self._run = mx, backend._run

        def build() -> None:
            self._model = module.Model(module.ModelArgs.from_dict(fields))
            named = tree_flatten(backend.model.decoder.parameters())
            weights = [(n if n.startswith("lm_head") else f"model.{n}", a) for n, a in named if "sst_" not in n]
            self._model.load_weights(weights)
            self._cache = make_prompt_cache(self._model)

        self._run(build)

    def _read(self, ids: list[int]) -> int:
        def work() -> int:
            hidden = self._model.model(self._mx.array([ids]), self._cache)[:, -1:]
            tied = self._model.args.tie_word_embeddings
            logits = self._model.model.embed_tokens.as_linear(hidden) if tied else self._model.lm_head(hidden)
            return int(logits[0, -1].argmax().item())

        return self._run(work)

    def hear(self, ids: list[int]) -> None:
        def work() -> None:
            self._model.model(self._mx.array([ids]), self._cache)
            self._mx.eval([layer.state for layer in self._cache])

        self._run(work)

    def answer(self, ids: list[int]) -> Generator[int]:
        heard = self._cache[0].offset
        try:
            while True:
                token = self._read(ids)
                yield token
                ids = [token]
        finally:
            for layer in self._cache:
                layer.trim(layer.offset - heard)

    def bytes(self) -> int:
        rows = self._cache[0].offset
        parts = [part for layer in self._cache for part in (layer.keys, layer.values)]
        return sum(part[:, :, :rows].nbytes for part in parts)
