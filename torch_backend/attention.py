"""Attention of the decoder: projections, and softmax over keys that lie in several pieces.

A row's keys are those of the memory's pages and its own. Each piece goes through a fused kernel that also gives the
log-sum-exp of its scores, and by these the pieces are joined to what one softmax over all would give: nothing of the
memory is copied, whatever its length. What a row sees comes from the core as a mask or as CAUSAL.

Letters: B batch, R rows, K keys, M memory slots, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speech_xl.config import DecoderConfig, SSTConfig
from torch_backend.kernels import attend_and_sum
from torch_backend.linear import Linear
from torch_backend.memory import KeyValues

Rotation = tuple[torch.Tensor, torch.Tensor]  # cos and sin of `angles`, of shape (B or 1, 1, R, head_dim)
Pooled = tuple[torch.Tensor, torch.Tensor]  # tokens and columns, see Attention.pool
Mask: TypeAlias = (
    torch.Tensor | str | None
)  # (..., R, K) bool, True where a row sees a key; or CAUSAL; None: every row sees all
Piece = tuple[
    torch.Tensor, torch.Tensor
]  # attention to n stretches of keys, to each alone (n, B, H, R, head_dim), and its scores' log-sum-exp (n, B, H, R)

ROWS_AT_ONCE = (
    2**14
)  # of heads and pages, whose attention waits to be joined: more would take room that grows with the memory


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """RoPE (arXiv 2104.09864) in the half-split layout of Llama and Qwen2. x (B, H, R, head_dim)."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def attend_piece(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask = None) -> Piece:
    """q (B, H, R, head_dim); k, v (B, kv_heads, K, head_dim), K > 0; CAUSAL needs R = K."""
    b, heads, rows, width = q.shape
    group = heads // k.shape[1]
    if isinstance(mask, str):
        out, total = attend_and_sum(q, k, v, causal=True)
        return out[None], total[None]
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
        bias = bias.expand(b, 1, rows, k.shape[2]).repeat(1, 1, group, 1)
    # The heads that share keys are rows of one product: no key is copied for them.
    out, total = attend_and_sum(q.reshape(b, k.shape[1], group * rows, width), k, v, bias)
    return out.reshape(1, *q.shape), total.reshape(1, b, heads, rows)


def side_by_side(pieces: Sequence[Piece]) -> Piece:
    """One piece of the stretches of all."""
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([out for out, _ in pieces]), torch.cat([total for _, total in pieces])


def join(pieces: Sequence[Piece]) -> torch.Tensor:
    """Attention to the keys of all stretches (B, H, R, head_dim)."""
    out, totals = side_by_side(pieces)
    return out[0] if len(out) == 1 else (out * totals.softmax(0)[..., None]).sum(0).to(out.dtype)


def sum_of(pieces: Sequence[Piece]) -> torch.Tensor:
    """The log-sum-exp of all scores (B, H, R)."""
    return torch.cat([total for _, total in pieces]).logsumexp(0)


class Attention(nn.Module):
    """Grouped-query attention with one set of projections for speech and text, another for SSTs."""

    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        width, bias = config.hidden_size, config.attention_bias
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(width, queries, bias=bias)
        self.k_proj = Linear(width, keys, bias=bias)
        self.v_proj = Linear(width, keys, bias=bias)
        self.together: Callable[[torch.Tensor], torch.Tensor] | None = None  # all three as one product; see rotated
        self.o_proj = Linear(queries, width, bias=config.attention_output_bias)
        if sst is not None and sst.own_projections:
            self.sst_q_proj = Linear(width, queries, bias=bias)
            self.sst_k_proj = Linear(width, keys, bias=bias)
            self.sst_v_proj = Linear(width, keys, bias=bias)
            if sst.output_projection:
                self.sst_o_proj = Linear(queries, width, bias=config.attention_output_bias)
            if sst.pooled:
                self.sst_pool = nn.Parameter(torch.zeros(2, self.kv_heads, sum(sst.ratios)))

    def queries(self, x: torch.Tensor, sst: bool = False) -> torch.Tensor:
        """(B, R, D) -> unrotated (B, H, R, head_dim)."""
        return self._heads((self.sst_q_proj if sst and hasattr(self, "sst_q_proj") else self.q_proj)(x))

    def keys_values(self, x: torch.Tensor, sst: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, R, D) -> unrotated keys, and values, (B, kv_heads, R, head_dim)."""
        is_own = sst and hasattr(self, "sst_q_proj")
        layers = (self.sst_k_proj, self.sst_v_proj) if is_own else (self.k_proj, self.v_proj)
        k, v = (self._heads(layer(x)) for layer in layers)
        return k, v

    def project(self, x: torch.Tensor, sst: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, R, D) -> unrotated q (B, H, R, head_dim), k and v (B, kv_heads, R, head_dim)."""
        return self.queries(x, sst), *self.keys_values(x, sst)

    def rotated(self, x: torch.Tensor, rotation: Rotation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, R, D) -> q (B, H, R, head_dim) and k, both rotated, and v, (B, kv_heads, R, head_dim)."""
        if self.together is None:
            q, k, v = self.project(x)
            return rotate(q, rotation), rotate(k, rotation), v
        both, v = self._heads(self.together(x)).split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(both, rotation).split([self.heads, self.kv_heads], dim=1)
        return q, k, v

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def pool(self, part: int, rows: torch.Tensor, tokens: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """(B, kv_heads, K, head_dim): for each SST a weighted sum of unrotated keys (part 0) or values (part 1).

        rows (B, kv_heads, n, head_dim); tokens (B, K, R) int64, the rows that each SST stands for; columns (B, K, R)
        int64, the weight of each, sum of the ratios where there is none. The weights are one row per head, so that
        heads can keep different tokens of a block: together they keep more than any mean does.
        """
        weights = F.pad(self.sst_pool[part], (0, 1))[:, columns].transpose(0, 1)  # (B, kv_heads, K, R)
        # As a matrix over the rows: products are fast in both directions, gathered rows are slow to train through.
        mix = weights.new_zeros(*weights.shape[:3], rows.shape[2])
        return mix.scatter_add(3, tokens[:, None].expand(weights.shape), weights) @ rows

    def output(self, x: torch.Tensor, sst: bool = False) -> torch.Tensor:
        """(B, H, R, head_dim) -> (B, R, D)."""
        project = self.sst_o_proj if sst and hasattr(self, "sst_o_proj") else self.o_proj
        return project(x.transpose(1, 2).flatten(2))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Scaled dot-product attention; mask (..., R, keys) is True where a row sees a key."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads)

    def attend_memory(self, q: torch.Tensor, memory: KeyValues) -> list[Piece]:
        """Rotated queries (B, H, R, head_dim) to the memory that all of the batch share: one piece, none if it is empty."""
        b, heads, rows, width = q.shape
        # Heads that share keys, and the batch, are rows of one product; its own batch is pages.
        folded = q.unflatten(1, (self.kv_heads, -1)).transpose(0, 1).reshape(1, self.kv_heads, -1, width)
        most = max(1, ROWS_AT_ONCE // (b * heads * rows))
        pieces: list[Piece] = []
        waiting = 0
        for keys, values, turn in memory.blocks(most):
            if waiting + len(keys) > most:
                pieces, waiting = [(join(pieces)[None], sum_of(pieces)[None])], 1
            given = turned(folded, turn, self.rope_theta)
            pieces.append(attend_and_sum(given.expand(len(keys), -1, -1, -1), keys, values))
            waiting += len(keys)
        if not pieces:
            return []
        out, total = side_by_side(pieces)
        out = out.unflatten(2, (b, -1)).transpose(1, 2).reshape(-1, *q.shape)
        return [(out, total.unflatten(2, (b, -1)).transpose(1, 2).reshape(-1, b, heads, rows))]

    def weigh(self, q: torch.Tensor, total: torch.Tensor, memory: KeyValues) -> torch.Tensor:
        """(B, M) float32: the attention of one row (B, H, 1, head_dim) to each memory slot, averaged over heads.

        total (B, H, 1): log-sum-exp of its scores to all keys that it sees.
        """
        folded = (q / math.sqrt(self.head_dim)).reshape(len(q), self.kv_heads, -1, self.head_dim)
        folded, total = folded.transpose(0, 1).flatten(1, 2), total.reshape(len(q), self.kv_heads, -1)
        total = total.transpose(0, 1).flatten(1)[..., None]
        weights = [total.new_zeros(len(q), 0)]
        for keys, _, turn in memory.blocks():
            scores = turned(folded, turn, self.rope_theta) @ keys.transpose(-1, -2)  # (pages, kv_heads, rows, slots)
            found = scores.float().sub_(total).exp_().unflatten(2, (len(q), -1)).mean((1, 3))
            weights.append(found.transpose(0, 1).flatten(1))
        return torch.cat(weights, dim=1)

    def most_attended(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        unrotated: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor,
        attended_rows: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unrotated keys, and values, (B, kv_heads, m, head_dim) of the rows that their interval attends to most, per head.

        q, k, v and `unrotated`, the keys before rotation: the interval's n rows, of which each sees those of mask (n, n).
        `attended_rows`: which stay, by the attention that each row gets; see IntervalPlan.
        """
        grouped = q.unflatten(1, (self.kv_heads, -1))
        scores = (grouped @ k[:, :, None].transpose(-1, -2)).float() / math.sqrt(self.head_dim)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).sum((2, 3))  # (B, kv_heads, n)
        chosen = torch.from_numpy(attended_rows(weights.cpu().numpy())).to(q.device)
        rows = chosen[..., None].expand(-1, -1, -1, self.head_dim)
        return unrotated.gather(2, rows), v.gather(2, rows)


def angles(positions: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """positions (...,) int64 -> (..., head_dim) float32 of RoPE, the left half the other way round; see rotate.

    In float32 whatever the weights' type: bfloat16 cannot tell position 257 from 256.
    """
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    found = positions.float()[..., None] * theta ** (-pairs / head_dim)
    return torch.cat([-found, found], dim=-1)


def turned(x: torch.Tensor, positions: int, theta: float) -> torch.Tensor:
    """Rotated keys or queries (..., R, head_dim), moved on by a number of positions."""
    if not positions:
        return x
    turn = angles(torch.full((1,), positions, device=x.device), x.shape[-1], theta)
    return rotate(x, (turn.cos().to(x.dtype), turn.sin().to(x.dtype)))
