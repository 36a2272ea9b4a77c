"""A Qwen2- or Llama-type decoder with SSTs in plain numpy: one way through the layers, for audio and for text.

Rows of any kind run together under one explicit mask; nothing is fast, nothing is cut short. It knows rows,
positions and masks, and weights by their names in a checkpoint.

Letters: R rows, M memory rows, K SSTs, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from speech_xl.config import DecoderConfig
from tests.numpy_backend.encoder import Weights, linear


@dataclass
class Rows:
    """What one layer made of its rows: unrotated keys and values (kv_heads, R, head_dim), and rotated queries."""

    queries: np.ndarray  # (H, R, head_dim)
    keys: np.ndarray
    values: np.ndarray


def rms_norm(weights: Weights, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    """Over the last axis of (R, D)."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights[f"{name}.weight"]


def rotate(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """RoPE (arXiv 2104.09864) of (heads, R, head_dim) at positions (R,); pairs are (i, i + head_dim / 2)."""
    half = x.shape[-1] // 2
    angles = positions[:, None] / theta ** (np.arange(half) / half)
    left, right = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q (H, R, head_dim), k and v (kv_heads, keys, head_dim), mask (R, keys) -> (H, R, head_dim), weights (H, R, keys)."""
    group = len(q) // len(k)
    scores = q @ np.repeat(k, group, axis=0).swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = softmax(np.where(mask, scores, -np.inf), axis=-1)
    return weights @ np.repeat(v, group, axis=0), weights


class Layer:
    """Layer `number` of the decoder; rows flagged as SSTs go through the projections of their own."""

    def __init__(self, weights: Weights, config: DecoderConfig, number: int):
        self._weights, self._config, self._name = weights, config, f"decoder.layers.{number}"

    def _project(self, part: str, x: np.ndarray, is_sst: np.ndarray) -> np.ndarray:
        """(R, inputs) -> (R, outputs) through `part`_proj, and through sst_`part`_proj where there is one."""
        name = f"{self._name}.self_attn"
        out = linear(self._weights, f"{name}.{part}_proj", x)
        if is_sst.any() and f"{name}.sst_{part}_proj.weight" in self._weights:
            out[is_sst] = linear(self._weights, f"{name}.sst_{part}_proj", x[is_sst])
        return out

    def project(self, x: np.ndarray, is_sst: np.ndarray, positions: np.ndarray) -> Rows:
        """x (R, D), is_sst (R,) bool, query positions (R,)."""
        h = rms_norm(self._weights, f"{self._name}.input_layernorm", x, self._config.rms_norm_eps)
        q, k, v = (
            self._project(part, h, is_sst).reshape(len(x), -1, self._config.head_dim).swapaxes(0, 1) for part in "qkv"
        )
        return Rows(rotate(q, positions, self._config.rope_theta), k, v)

    def pool(self, rows: Rows, is_sst: np.ndarray, tokens: np.ndarray, columns: np.ndarray) -> None:
        """Add to each SST's key and value its weighted sum of those of `tokens` (K, ratio), by `columns` (ratio,)."""
        for part, numbers in enumerate((rows.keys, rows.values)):
            mix = self._weights[f"{self._name}.self_attn.sst_pool"][part][:, columns]  # (kv_heads, ratio)
            numbers[:, is_sst] += np.einsum("hr,hkrd->hkd", mix, numbers[:, tokens])

    def finish(self, x: np.ndarray, heard: np.ndarray, is_sst: np.ndarray) -> np.ndarray:
        """The layer's output (R, D) from its input and what attention heard (H, R, head_dim)."""
        x = x + self._project("o", heard.swapaxes(0, 1).reshape(len(x), -1), is_sst)
        h = rms_norm(self._weights, f"{self._name}.post_attention_layernorm", x, self._config.rms_norm_eps)
        gate = linear(self._weights, f"{self._name}.mlp.gate_proj", h)
        up = linear(self._weights, f"{self._name}.mlp.up_proj", h)
        return x + linear(self._weights, f"{self._name}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)


def attention_received(rows: Rows, keys: np.ndarray) -> np.ndarray:
    """(kv_heads, R): what each row gets from all queries of its own interval that see it, summed.

    keys (kv_heads, R, head_dim) are the rotated ones.
    """
    n = keys.shape[1]
    _, weights = attend(rows.queries, keys, rows.values, np.tri(n, dtype=bool))
    return weights.reshape(len(keys), -1, n, n).sum((1, 2))
