"""A Qwen2- or Llama-type decoder with a second set of projections for Speech Summarization Tokens.

Three ways through the same layers: `intervals` hears intervals and appends to the memory, `text` reads or writes texts
behind a memory, `whole` runs a whole recording with its questions in one masked pass (training). It executes the core's
plans and decides nothing. Tensor names are Hugging Face's Qwen2 names; those that start with `sst_` are ours.

Letters: B batch, R rows, n speech tokens of an interval, K SSTs, m slots that it leaves, M memory slots, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from speech_xl.config import DecoderConfig, SSTConfig
from speech_xl.visibility import CAUSAL
from torch_backend.attention import (
    Attention,
    Mask,
    Piece,
    Pooled,
    Rotation,
    angles,
    attend_piece,
    join,
    rotate,
    sum_of,
    turned,
)
from torch_backend.linear import Linear, linear
from torch_backend.memory import KeyValues, TextCache

if TYPE_CHECKING:
    from torch_backend.graphs import FixedCache


@dataclass(frozen=True)
class Share:
    """One recording's part of a batch of intervals."""

    memory: Sequence[KeyValues]  # of each layer
    own: slice  # of the batch's intervals
    seen: tuple[tuple[int, int], ...]  # rows of the memory [first, past the last) that all of them see


@dataclass(frozen=True)
class Intervals:
    """The plans of B intervals of one shape, as tensors. Without SSTs (K = 0) one of the last three says what stays;
    with none of them, every row does.
    """

    shares: Sequence[Share]  # the intervals' recordings, in order
    speech_rotation: Rotation  # of n rows
    sst_query_rotation: Rotation  # of K
    slot_rotation: Rotation  # of m
    sst_mask: torch.Tensor  # (K, n + K) bool: which rows of its interval each SST sees; see IntervalPlan
    pooled: Pooled | None  # where SSTs pool
    selection: torch.Tensor | None  # (m, n): slots are means of the rows by these weights
    attended: tuple[torch.Tensor, Callable[[np.ndarray], np.ndarray]] | None  # (n, n) mask, choice; see most_attended

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Rows (B, kv_heads, m, head_dim) to the intervals' memories."""
        for share in self.shares:
            rows = (one_behind_the_other(part[share.own]) for part in (keys, values))
            share.memory[layer].append(*rows)

    def attend_memories(self, layer: int, attention: Attention, q: torch.Tensor) -> list[Piece]:
        """Rotated queries (B, H, R, head_dim), each interval's to what it sees of its memory: one piece or none."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for share in self.shares:
            own = q[share.own]
            pieces = attention.attend_memory(own, share.memory[layer].rows(*share.seen))
            if len(self.shares) == 1:
                return pieces
            if pieces:
                found.append((join(pieces), sum_of(pieces)))
            else:
                found.append((torch.zeros_like(own), own.new_full(own.shape[:3], -torch.inf, dtype=torch.float32)))
        out, total = (torch.cat(part) for part in zip(*found, strict=True))
        return [(out[None], total[None])]


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) -> the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and SwiGLU, each behind a norm and around a residual."""

    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, sst)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, R, D) -> the same, the residual included."""
        return x + self.mlp(self.post_attention_layernorm(x))

    def whole(
        self,
        x: torch.Tensor,
        q_rotation: Rotation,
        k_rotation: Rotation,
        attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        sst_rows: slice | None,
        pool: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """A masked pass through this layer: x (B, R, D), the SSTs' rows `sst_rows` -> (B, R, D).

        attend(q, k, v): attention under the pass's mask, whoever computes it. pool(part, rows): `Attention.pool` of the
        rows before the SSTs.
        """
        attention = self.self_attn
        h = self.input_layernorm(x)
        if sst_rows is None:
            q, k, v = attention.project(h)
            out = attention.output(attend(rotate(q, q_rotation), rotate(k, k_rotation), v))
            return self.feed_forward(x + out)
        before, after = slice(0, sst_rows.start), slice(sst_rows.stop, x.shape[1])
        heard, (sst_q, sst_k, sst_v) = attention.project(h[:, before]), attention.project(h[:, sst_rows], sst=True)
        if pool is not None:
            sst_k, sst_v = sst_k + pool(0, heard[1]), sst_v + pool(1, heard[2])
        parts = [heard, (sst_q, sst_k, sst_v), attention.project(h[:, after])]
        q, k, v = (torch.cat(p, dim=2) for p in zip(*parts, strict=True))
        out = attend(rotate(q, q_rotation), rotate(k, k_rotation), v)
        if hasattr(attention, "sst_o_proj"):
            out = torch.cat(
                [
                    attention.output(out[:, :, before]),
                    attention.output(out[:, :, sst_rows], sst=True),
                    attention.output(out[:, :, after]),
                ],
                dim=1,
            )
        else:
            out = attention.output(out)
        return self.feed_forward(x + out)


def rows_of(pieces: Sequence[Piece], rows: slice) -> list[Piece]:
    """Some rows of pieces."""
    return [(out[..., rows, :], total[..., rows]) for out, total in pieces]


def one_behind_the_other(rows: torch.Tensor) -> torch.Tensor:
    """(B, kv_heads, m, head_dim) of B intervals -> (1, kv_heads, B * m, head_dim) of a memory."""
    return rows.transpose(0, 1).flatten(1, 2)[None]


class Decoder(nn.Module):
    """Embeddings, layers, final norm and the language-model head."""

    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, sst) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head: Any = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.sst_embedding: Any = nn.Parameter(torch.zeros(config.hidden_size)) if sst is not None else None

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """positions (R,) or (B, R) int64 -> cos and sin, (R, head_dim) or (B, 1, R, head_dim)."""
        found = angles(positions, self.config.head_dim, self.config.rope_theta)
        if positions.dim() == 2:
            found = found[:, None]
        dtype = self.embed_tokens.weight.dtype
        return found.cos().to(dtype), found.sin().to(dtype)

    def turned(self, x: torch.Tensor, positions: int) -> torch.Tensor:
        """Rotated keys (..., R, head_dim), moved on by a number of positions."""
        return turned(x, positions, self.config.rope_theta)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) before the final norm -> (..., vocab_size)."""
        x = self.norm(x)
        return linear(x, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)

    def intervals(self, speech: torch.Tensor, plan: Intervals) -> None:
        """Hear B intervals that do not see one another: speech (B, n, D); appends what they leave to their
        memories, in their order.

        Rows lie as [speech | SSTs]. Speech rows never see an SST, so they take the causal kernel. What nobody reads is
        not computed: the last layer is asked for what stays, and the one before it only for what the last one reads.
        """
        x, k = speech, plan.sst_mask.shape[0]
        s = self.sst_embedding.expand(len(x), k, -1) if k else None
        last = len(self.layers) - 1
        speech_stays = not k or plan.pooled is not None  # in the memory, in whatever form
        for number, layer in enumerate(self.layers):
            attention = layer.self_attn
            if number < last or speech_stays:
                h = layer.input_layernorm(x)
                unrotated, value = attention.keys_values(h)
                key = rotate(unrotated, plan.speech_rotation)
            goes_on = number + 1 < last or (number < last and speech_stays)  # whether a later layer reads speech rows
            if goes_on or plan.attended is not None:
                q = rotate(attention.queries(h), plan.speech_rotation)
            if k:
                h = layer.input_layernorm(s)
                own_key, own_value = attention.keys_values(h, sst=True)
                if plan.pooled is not None:
                    own_key = own_key + attention.pool(0, unrotated, *plan.pooled)
                    own_value = own_value + attention.pool(1, value, *plan.pooled)
                own_key = rotate(own_key, plan.slot_rotation)
                plan.append(number, own_key, own_value)
            elif plan.selection is not None:
                kept = rotate(plan.selection @ unrotated, plan.slot_rotation)
                plan.append(number, kept, plan.selection @ value)
            elif plan.attended is not None:
                kept, kept_value = attention.most_attended(q, key, unrotated, value, *plan.attended)
                plan.append(number, rotate(kept, plan.slot_rotation), kept_value)
            else:
                plan.append(number, key, value)
            if number == last:
                return
            queries = []
            if k:
                queries.append(rotate(attention.queries(h, sst=True), plan.sst_query_rotation))
            if goes_on:
                queries.append(q)
            # A memory is read once for both kinds of rows.
            from_memory = plan.attend_memories(number, attention, torch.cat(queries, dim=2))
            if k:
                seen = torch.cat([key, own_key], dim=2), torch.cat([value, own_value], dim=2)
                pieces = [*rows_of(from_memory, slice(0, k)), attend_piece(queries[0], *seen, plan.sst_mask)]
                s = layer.feed_forward(s + attention.output(join(pieces), sst=True))
            if goes_on:
                pieces = [*rows_of(from_memory, slice(k, None)), attend_piece(q, key, value, CAUSAL)]
                x = layer.feed_forward(x + attention.output(join(pieces)))

    def text(
        self,
        ids: torch.Tensor,
        rotation: Rotation,
        memory: Sequence[KeyValues],
        caches: Sequence[TextCache | FixedCache],
        mask: Mask,
        weighed: Collection[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read B texts behind the memory that they share: ids (B, R); their keys and values go to `caches`.

        mask: what the rows see of their text's columns in the caches, these rows the last of them; see text_mask.

        Returns the logits of each last row (B, vocab_size) and its attention to each memory slot, averaged over heads and
        the layers `weighed`: (B, M) float32, M = 0 if there are none.
        """
        x = self.embed_tokens(ids)
        weights: list[torch.Tensor] = []
        for number, (layer, slots, cache) in enumerate(zip(self.layers, memory, caches, strict=True)):
            attention = layer.self_attn
            q, k, v = attention.rotated(layer.input_layernorm(x), rotation)
            k, v = cache.append(k, v)
            if number == len(self.layers) - 1:  # nobody reads its other rows
                x, q, mask = x[:, -1:], q[:, :, -1:], mask[..., -1:, :] if isinstance(mask, torch.Tensor) else None
            pieces = [*attention.attend_memory(q, slots), attend_piece(q, k, v, mask)]
            if number in weighed:
                weights.append(attention.weigh(q[:, :, -1:], sum_of(rows_of(pieces, slice(-1, None))), slots))
            x = layer.feed_forward(x + attention.output(join(pieces)))
        shown = torch.stack(weights).mean(0) if weights else x.new_zeros(len(ids), 0, dtype=torch.float32)
        return self.logits(x[:, -1]), shown

    def whole(
        self,
        x: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        mask: torch.Tensor,
        sst_rows: slice,
        pooled: Pooled | None = None,
    ) -> torch.Tensor:
        """One masked pass: x (B, R, D) with SST embeddings in place, positions (B, R), mask (B, 1, R, R).

        `pooled`: rows and columns as `Attention.pool` takes them, rows counted from the first of x.

        Returns (B, R, D) before the final norm.
        """
        rotations = self.rotation(query_positions), self.rotation(key_positions)
        rows = sst_rows if sst_rows.stop > sst_rows.start else None
        for layer in self.layers:
            attention = layer.self_attn
            pool = None if pooled is None else partial(attention.pool, tokens=pooled[0], columns=pooled[1])
            x = layer.whole(x, *rotations, partial(attention.attend, mask=mask), rows, pool)
        return x
