"""Attention of the decoder: projections, and softmax over keys that lie in several pieces.

A row's keys are those of the memory's pages and its own. Each piece also gives the log-sum-exp of its scores, and by these the pieces are joined to what one softmax over all would give: nothing of the
memory is copied, whatever its length. What a row sees comes from the core as a mask or as CAUSAL.

Letters: B batch, R rows, K keys, M memory slots, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_backend.cpu import attend, attend_and_sum
from mlx_backend.memory import KeyValues
from speech_xl.config import DecoderConfig, SSTConfig

Rotation = tuple[mx.array, mx.array]  # cos and sin of `angles`, of shape (B or 1, 1, R, head_dim)
Pooled = tuple[mx.array, mx.array]  # tokens and columns, see Attention.pool
Mask: TypeAlias = (
    mx.array | str | None
)  # (..., R, K) bool, True where a row sees a key; or CAUSAL; None: every row sees all
Piece = tuple[
    mx.array, mx.array
]  # attention to n stretches of keys, to each alone (n, B, H, R, head_dim), and its scores' log-sum-exp (n, B, H, R)

ROWS_AT_ONCE = (
    2**14
)  # of heads and pages, whose attention waits to be joined: more would take room that grows with the memory


def rotate(x: mx.array, rotation: Rotation) -> mx.array:
    """RoPE (arXiv 2104.09864) in the half-split layout of Llama and Qwen2. x (B, H, R, head_dim)."""
    cos, sin = rotation
    left, right = mx.split(x, 2, axis=-1)
    return x * cos + mx.concatenate([right, left], axis=-1) * sin


def attend_piece(q: mx.array, k: mx.array, v: mx.array, mask: Mask = None) -> Piece:
    """q (B, H, R, head_dim); k, v (B, kv_heads, K, head_dim), K > 0; CAUSAL needs R = K."""
    out, total = attend_and_sum(q, k, v, mx.tri(q.shape[2], dtype=mx.bool_) if isinstance(mask, str) else mask)
    return out[None], total[None]


def side_by_side(pieces: Sequence[Piece]) -> Piece:
    """One piece of the stretches of all."""
    if len(pieces) == 1:
        return pieces[0]
    return mx.concatenate([out for out, _ in pieces]), mx.concatenate([total for _, total in pieces])


def join(pieces: Sequence[Piece]) -> mx.array:
    """Attention to the keys of all stretches (B, H, R, head_dim)."""
    out, totals = side_by_side(pieces)
    return out[0] if len(out) == 1 else (out * mx.softmax(totals, axis=0)[..., None]).sum(0).astype(out.dtype)


def sum_of(pieces: Sequence[Piece]) -> mx.array:
    """The log-sum-exp of all scores (B, H, R)."""
    return mx.logsumexp(mx.concatenate([total for _, total in pieces]), axis=0)


class Attention(nn.Module):
    """Grouped-query attention with one set of projections for speech and text, another for SSTs."""

    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        width, bias = config.hidden_size, config.attention_bias
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, queries, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, keys, bias=bias)
        self.o_proj = nn.Linear(queries, width, bias=config.attention_output_bias)
        if sst is not None and sst.own_projections:
            self.sst_q_proj = nn.Linear(width, queries, bias=bias)
            self.sst_k_proj = nn.Linear(width, keys, bias=bias)
            self.sst_v_proj = nn.Linear(width, keys, bias=bias)
            if sst.output_projection:
                self.sst_o_proj = nn.Linear(queries, width, bias=config.attention_output_bias)
            if sst.pooled:
                self.sst_pool = mx.zeros((2, self.kv_heads, sum(sst.ratios)))

    def queries(self, x: mx.array, sst: bool = False) -> mx.array:
        """(B, R, D) -> unrotated (B, H, R, head_dim)."""
        return self._heads((self.sst_q_proj if sst and "sst_q_proj" in self else self.q_proj)(x))

    def keys_values(self, x: mx.array, sst: bool = False) -> tuple[mx.array, mx.array]:
        """(B, R, D) -> unrotated keys, and values, (B, kv_heads, R, head_dim)."""
        is_own = sst and "sst_q_proj" in self
        layers = (self.sst_k_proj, self.sst_v_proj) if is_own else (self.k_proj, self.v_proj)
        k, v = (self._heads(layer(x)) for layer in layers)
        return k, v

    def project(self, x: mx.array, sst: bool = False) -> tuple[mx.array, mx.array, mx.array]:
        """(B, R, D) -> unrotated q (B, H, R, head_dim), k and v (B, kv_heads, R, head_dim)."""
        return self.queries(x, sst), *self.keys_values(x, sst)

    def rotated(self, x: mx.array, rotation: Rotation) -> tuple[mx.array, mx.array, mx.array]:
        """(B, R, D) -> q (B, H, R, head_dim) and k, both rotated, and v, (B, kv_heads, R, head_dim)."""
        q, k, v = self.project(x)
        return rotate(q, rotation), rotate(k, rotation), v

    def _heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3)

    def pool(self, part: int, rows: mx.array, tokens: mx.array, columns: mx.array) -> mx.array:
        """(B, kv_heads, K, head_dim): for each SST a weighted sum of unrotated keys (part 0) or values (part 1).

        rows (B, kv_heads, n, head_dim); tokens (B, K, R) int64, the rows that each SST stands for; columns (B, K, R)
        int64, the weight of each, sum of the ratios where there is none. The weights are one row per head, so that
        heads can keep different tokens of a block: together they keep more than any mean does.
        """
        weights = mx.pad(self.sst_pool[part], ((0, 0), (0, 1)))[:, columns].swapaxes(0, 1)  # (B, kv_heads, K, R)
        chosen = (tokens[..., None] == mx.arange(rows.shape[2])).astype(rows.dtype)  # (B, K, R, n)
        return (weights[..., None, :] @ chosen[:, None])[..., 0, :] @ rows

    def output(self, x: mx.array, sst: bool = False) -> mx.array:
        """(B, H, R, head_dim) -> (B, R, D)."""
        project = self.sst_o_proj if sst and "sst_o_proj" in self else self.o_proj
        return project(x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1))

    def attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """Scaled dot-product attention; mask (..., R, keys) is True where a row sees a key."""
        return attend(q, k, v, mask)

    def attend_memory(self, q: mx.array, memory: KeyValues) -> list[Piece]:
        """Rotated queries (B, H, R, head_dim) to the memory that all of the batch share: one piece, none if it is empty."""
        b, heads, rows, width = q.shape
        # Heads that share keys, and the batch, are rows of one product; its own batch is pages.
        folded = q.reshape(b, self.kv_heads, -1, width).swapaxes(0, 1).reshape(1, self.kv_heads, -1, width)
        most = max(1, ROWS_AT_ONCE // (b * heads * rows))
        pieces: list[Piece] = []
        waiting = 0
        for keys, values, turn in memory.blocks(most):
            if waiting + len(keys) > most:
                pieces, waiting = [(join(pieces)[None], sum_of(pieces)[None])], 1
            given = turned(folded, turn, self.rope_theta)
            pieces.append(attend_and_sum(mx.broadcast_to(given, (len(keys), *given.shape[1:])), keys, values, None))
            waiting += len(keys)
        if not pieces:
            return []
        out, total = side_by_side(pieces)
        out = out.reshape(-1, self.kv_heads, b, heads // self.kv_heads * rows, width).swapaxes(1, 2)
        total = total.reshape(-1, self.kv_heads, b, heads // self.kv_heads * rows).swapaxes(1, 2)
        return [(out.reshape(-1, *q.shape), total.reshape(-1, b, heads, rows))]

    def weigh(self, q: mx.array, total: mx.array, memory: KeyValues) -> mx.array:
        """(B, M) float32: the attention of one row (B, H, 1, head_dim) to each memory slot, averaged over heads.

        total (B, H, 1): log-sum-exp of its scores to all keys that it sees.
        """
        folded = (q / math.sqrt(self.head_dim)).reshape(len(q), self.kv_heads, -1, self.head_dim)
        folded, total = folded.swapaxes(0, 1).flatten(1, 2), total.reshape(len(q), self.kv_heads, -1)
        total = total.swapaxes(0, 1).flatten(1)[..., None]
        weights = [mx.zeros((len(q), 0), mx.float32)]
        for keys, _, turn in memory.blocks():
            scores = turned(folded, turn, self.rope_theta) @ keys.swapaxes(-1, -2)  # (pages, kv_heads, rows, slots)
            found = mx.unflatten(mx.exp(scores.astype(mx.float32) - total), 2, (len(q), -1)).mean((1, 3))
            weights.append(found.swapaxes(0, 1).flatten(1))
        return mx.concatenate(weights, axis=1)

    def most_attended(
        self,
        q: mx.array,
        k: mx.array,
        unrotated: mx.array,
        v: mx.array,
        mask: mx.array,
        attended_rows: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[mx.array, mx.array]:
        """Unrotated keys, and values, (B, kv_heads, m, head_dim) of the rows that their interval attends to most, per head.

        q, k, v and `unrotated`, the keys before rotation: the interval's n rows, of which each sees those of mask (n, n).
        `attended_rows`: which stay, by the attention that each row gets; see IntervalPlan.
        """
        b, _, n, width = q.shape
        grouped = q.reshape(b, self.kv_heads, -1, n, width)
        scores = (grouped @ k[:, :, None].swapaxes(-1, -2)).astype(mx.float32) / math.sqrt(self.head_dim)
        weights = mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1).sum((2, 3))  # (B, kv_heads, n)
        rows = mx.array(attended_rows(np.array(weights)))[..., None]
        rows = mx.broadcast_to(rows, (*rows.shape[:-1], width))
        return mx.take_along_axis(unrotated, rows, axis=2), mx.take_along_axis(v, rows, axis=2)


def angles(positions: mx.array, head_dim: int, theta: float) -> mx.array:
    """positions (...,) int64 -> (..., head_dim) float32 of RoPE, the left half the other way round; see rotate.

    In float32 whatever the weights' type: bfloat16 cannot tell position 257 from 256.
    """
    pairs = mx.arange(0, head_dim, 2).astype(mx.float32)
    found = positions.astype(mx.float32)[..., None] * theta ** (-pairs / head_dim)
    return mx.concatenate([-found, found], axis=-1)


def turned(x: mx.array, positions: int, theta: float) -> mx.array:
    """Rotated keys or queries (..., R, head_dim), moved on by a number of positions."""
    if not positions:
        return x
    turn = angles(mx.array([positions]), x.shape[-1], theta)
    return rotate(x, (mx.cos(turn).astype(x.dtype), mx.sin(turn).astype(x.dtype)))
