"""Functions that MLX's CPU build computes slowly, one number at a time: done by other means there.

On Apple's GPUs both are MLX's own. On a CPU, where the backend is tested and where only a fallback runs, its
erf and exp take five to ten times as long as torch's; these bring listening near torch's time (docs/mlx.md).
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx import nn

# erf(x) = x P(x^2) / Q(x^2) on [-ERF_END, ERF_END], highest power first: the approximation of Eigen and XLA,
# within 6e-7 of the exact function in float32 (measured for |x| > 0.5).
ERF_END = 3.925
ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    """Of x, by coefficients from the highest power down."""
    total = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        total = total * x + coefficient
    return total


def gelu(x: mx.array) -> mx.array:
    """The exact GELU, x * (1 + erf(x / sqrt(2))) / 2."""
    if mx.default_device() == mx.gpu:
        return nn.gelu(x)
    z = mx.clip(x * math.sqrt(0.5), -ERF_END, ERF_END)
    square = z * z
    return 0.5 * x * (1 + z * polynomial(square, ERF_P) / polynomial(square, ERF_Q))


def softmax(scores: mx.array) -> tuple[mx.array, mx.array]:
    """Over the last axis of (..., R, keys) float32, and the log-sum-exp (..., R) that it divides by.

    Through numpy on a CPU, whose exp works on many numbers at once.
    """
    if mx.default_device() == mx.gpu:
        total = mx.logsumexp(scores, axis=-1)
        return mx.exp(scores - total[..., None]), total
    given = np.array(scores, copy=False)  # evaluates `scores`
    out, totals = np.empty(given.shape, np.float32), np.empty(given.shape[:-1], np.float32)
    for i in np.ndindex(*given.shape[:-2]):  # block by block: what stays in the cache is fast
        highest = given[i].max(-1, keepdims=True)
        block = np.subtract(given[i], highest, out=out[i])
        np.exp(block, out=block)
        total = block.sum(-1, keepdims=True)
        block /= total
        totals[i] = (highest + np.log(total))[..., 0]
    return mx.array(out), mx.array(totals)


def attend_and_sum(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> tuple[mx.array, mx.array]:
    """Scaled dot-product attention, as q, and the log-sum-exp of each row's scores, (B, H, R) float32.

    q (B, H, R, head_dim), k and v (B, kv_heads, keys, head_dim); mask (..., R, keys) is True where a row sees a key.
    """
    b, heads, rows, width = q.shape
    grouped = (q * width**-0.5).reshape(b, k.shape[1], -1, width)  # (B, kv_heads, H / kv_heads * R, head_dim)
    scores = (grouped @ k.swapaxes(-1, -2)).reshape(b, heads, rows, -1).astype(mx.float32)
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    weights, totals = softmax(scores)
    weights = weights.astype(v.dtype).reshape(b, k.shape[1], -1, k.shape[2])
    return (weights @ v).reshape(q.shape), totals


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """As `attend_and_sum`, the attention alone: fused on Apple's GPUs."""
    if mx.default_device() == mx.gpu:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
    return attend_and_sum(q, k, v, mask)[0]
