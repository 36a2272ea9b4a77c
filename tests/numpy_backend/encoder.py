"""From log-mel windows to speech tokens in plain numpy: Whisper's encoder (arXiv 2212.04356) and the adapter.

It knows windows, not recordings, and weights by their names in a checkpoint.

Letters: B windows, T mel frames, S encoder positions, N speech tokens, D width.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf, softmax

from speech_xl.config import CONV_STRIDE, ModelConfig

Weights = dict[str, np.ndarray]


def linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """(..., inputs) -> (..., outputs), with the bias that the checkpoint has, if any."""
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def layer_norm(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """PyTorch's LayerNorm over the last axis, eps 1e-5."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact one."""
    return x * (1 + erf(x / np.sqrt(2))) / 2


def convolution(weights: Weights, name: str, x: np.ndarray, stride: int) -> np.ndarray:
    """(B, T, inputs) -> (B, T / stride, outputs): three taps, one frame of zeros at each end."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    taps = np.stack([padded[:, i : i + x.shape[1] : stride] for i in range(3)], axis=-1)  # (B, T, inputs, 3)
    return np.einsum("btik,oik->bto", taps, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def self_attention(weights: Weights, name: str, x: np.ndarray, heads: int, seen: np.ndarray) -> np.ndarray:
    """(B, S, D) -> the same; seen (B, S) bool says which positions of a window anybody may look at."""
    q, k, v = (
        linear(weights, f"{name}.{part}_proj", x).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for part in "qkv"
    )
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    out = softmax(np.where(seen[:, None, None], scores, -np.inf), axis=-1) @ v
    return linear(weights, f"{name}.out_proj", out.swapaxes(1, 2).reshape(x.shape))


def encode(weights: Weights, config: ModelConfig, mel: np.ndarray, valid_positions: np.ndarray) -> np.ndarray:
    """mel (B, num_mel_bins, T), valid_positions (B,) int64 -> (B, S / pool, d_model)."""
    e, name = config.encoder, "speech.encoder"
    x = gelu(convolution(weights, f"{name}.conv1", mel.swapaxes(1, 2), 1))
    x = gelu(convolution(weights, f"{name}.conv2", x, CONV_STRIDE)) + weights[f"{name}.embed_positions.weight"]
    position = np.arange(x.shape[1])[None]
    seen = position < (valid_positions[:, None] if e.mask_padding else x.shape[1])
    seen = np.broadcast_to(seen, x.shape[:2])
    for i in range(e.encoder_layers):
        layer = f"{name}.layers.{i}"
        h = layer_norm(weights, f"{layer}.self_attn_layer_norm", x)
        x = x + self_attention(weights, f"{layer}.self_attn", h, e.encoder_attention_heads, seen)
        h = layer_norm(weights, f"{layer}.final_layer_norm", x)
        x = x + linear(weights, f"{layer}.fc2", gelu(linear(weights, f"{layer}.fc1", h)))
    pooled = x.reshape(len(x), -1, e.pool, e.d_model).mean(2)
    return layer_norm(weights, f"{name}.layer_norm", pooled)


def speech_tokens(weights: Weights, config: ModelConfig, mel: np.ndarray, valid_positions: np.ndarray) -> np.ndarray:
    """mel (B, num_mel_bins, T), valid_positions (B,) int64 -> (B, tokens_per_window, hidden_size)."""
    x = encode(weights, config, mel, valid_positions)
    context = config.encoder.context_positions // config.encoder.pool
    x = x[:, context : x.shape[1] - context]
    stacked = x.reshape(len(x), -1, config.adapter.stack * x.shape[2])
    out = linear(weights, "speech.adapter.linear_1", stacked)
    if config.adapter.hidden_size is None:
        return out
    return linear(weights, "speech.adapter.linear_2", gelu(out))
