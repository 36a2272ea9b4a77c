"""A Qwen2- or Llama-type decoder with a second set of projections for Speech Summarization Tokens.

Four ways through the same layers: `interval` hears one interval and appends to the memory, `text` reads
or writes text behind the memory, `texts` does so behind several memories at once, `whole` runs a whole
recording with its questions in one masked pass (training). It executes the core's plans and decides nothing. Tensor names are Hugging Face's Qwen2 names;
those that start with `sst_` are ours.

Letters: B batch, R rows, n speech tokens of an interval, K SSTs, M memory slots, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from speech_xl.config import DecoderConfig, SSTConfig
from torch_backend.memory import KeyValues

Pooled = tuple[torch.Tensor, torch.Tensor]  # tokens and columns, see Attention.pool
Rotation = tuple[torch.Tensor, torch.Tensor]  # cos, sin of shape (..., R, head_dim), broadcast over heads


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """RoPE (arXiv 2104.09864) in the half-split layout of Llama and Qwen2. x (B, H, R, head_dim)."""
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def without(rows: torch.Tensor, hidden: tuple[int, int]) -> torch.Tensor:
    """Rows (1, kv_heads, M, head_dim) but hidden[1] of them from row hidden[0] on: those beyond the listening horizon."""
    first, count = hidden
    return torch.cat([rows[:, :, :first], rows[:, :, first + count :]], dim=2) if count else rows


class Attention(nn.Module):
    """Grouped-query attention with one set of projections for speech and text, another for SSTs."""

    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
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
                self.sst_pool = nn.Parameter(torch.zeros(2, self.kv_heads, sum(sst.ratios)))

    def project(self, x: torch.Tensor, sst: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, R, D) -> unrotated q (B, H, R, head_dim), k and v (B, kv_heads, R, head_dim)."""
        if sst and hasattr(self, "sst_q_proj"):
            layers = self.sst_q_proj, self.sst_k_proj, self.sst_v_proj
        else:
            layers = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in layers)
        return q, k, v

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

    def attend_and_weigh(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, returning the attention weights too, averaged over heads: (B, R, keys) float32."""
        q = q.unflatten(1, (self.kv_heads, -1))  # (B, kv_heads, group, R, head_dim)
        scores = (q @ k[:, :, None].transpose(-1, -2)).float() / math.sqrt(self.head_dim)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights.to(v.dtype) @ v[:, :, None]).flatten(1, 2), weights.mean((1, 2))

    def most_attended(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        unrotated: torch.Tensor,
        v: torch.Tensor,
        slot_rotation: Rotation,
        attended_rows: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (1, kv_heads, m, head_dim) of the rows that their own interval attends to most, per head.

        `attended_rows`: which these are, by the attention that each row gets; see IntervalPlan.
        """
        n = k.shape[2]
        causal = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        grouped = q.unflatten(1, (self.kv_heads, -1))
        scores = (grouped @ k[:, :, None].transpose(-1, -2)).float() / math.sqrt(self.head_dim)
        weights = scores.masked_fill(~causal, -torch.inf).softmax(-1).sum((2, 3))  # (1, kv_heads, n)
        chosen = torch.from_numpy(attended_rows(weights.cpu().numpy())).to(q.device)
        rows = chosen[..., None].expand(-1, -1, -1, self.head_dim)
        return rotate(unrotated.gather(2, rows), slot_rotation), v.gather(2, rows)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, sst)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers, final norm and the language-model head."""

    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, sst) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.sst_embedding = nn.Parameter(torch.zeros(config.hidden_size)) if sst is not None else None

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """positions (R,) or (B, R) int64 -> cos and sin, (R, head_dim) or (B, 1, R, head_dim).

        Angles are computed in float32 whatever the weights' type: bfloat16 cannot tell position 257 from 256.
        """
        pairs = torch.arange(0, self.config.head_dim, 2, device=positions.device, dtype=torch.float32)
        frequencies = self.config.rope_theta ** (-pairs / self.config.head_dim)
        angles = positions.float()[..., None] * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        if positions.dim() == 2:
            angles = angles[:, None]
        dtype = self.embed_tokens.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) before the final norm -> (..., vocab_size)."""
        head = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(self.norm(x), head)

    def evict(self, memory: Sequence[KeyValues], first: int, count: int, back: Rotation) -> None:
        """Forget slots [first, first + count); those behind move up, rotated `back` by as many positions."""
        for cache in memory:
            keys, values = rotate(cache.keys[:, :, first + count :], back), cache.values[:, :, first + count :]
            cache.cut(first)
            cache.append(keys, values)

    def interval(
        self,
        speech: torch.Tensor,
        memory: Sequence[KeyValues],
        speech_rotation: Rotation,
        sst_query_rotation: Rotation,
        slot_rotation: Rotation,
        sst_mask: torch.Tensor,
        selection: torch.Tensor | None = None,
        attended_rows: Callable[[np.ndarray], np.ndarray] | None = None,
        hidden: tuple[int, int] = (0, 0),
        pooled: Pooled | None = None,
    ) -> None:
        """Hear one interval: speech (1, n, D); appends the keys and values of what it leaves.

        Speech rows never see an SST of their own interval, so the two kinds run on contiguous slices.
        sst_mask (K, n + K): which rows of the interval each SST sees; the memory is visible to all.
        With K = 0 the interval leaves its most attended rows, chosen by `attended_rows`, or means of its rows by the
        weights `selection` (m, n), or, with neither, every row.
        """
        n, k = speech.shape[1], sst_mask.shape[0]
        x = speech
        s = self.sst_embedding.expand(1, k, -1) if k else None
        last = len(self.layers) - 1
        for number, (layer, cache) in enumerate(zip(self.layers, memory, strict=True)):
            attention = layer.self_attn
            past_k, past_v = without(cache.keys, hidden), without(cache.values, hidden)
            m = past_k.shape[2]
            q, unrotated, value = attention.project(layer.input_layernorm(x))
            q, key = rotate(q, speech_rotation), rotate(unrotated, speech_rotation)
            if attended_rows is not None:
                cache.append(*attention.most_attended(q, key, unrotated, value, slot_rotation, attended_rows))
            elif selection is not None:
                cache.append(rotate(selection @ unrotated, slot_rotation), selection @ value)
            elif not k:
                cache.append(key, value)
            else:
                sst_q, sst_k, sst_v = attention.project(layer.input_layernorm(s), sst=True)
                if pooled is not None:
                    sst_k = sst_k + attention.pool(0, unrotated, *pooled)
                    sst_v = sst_v + attention.pool(1, value, *pooled)
                sst_k = rotate(sst_k, slot_rotation)
                cache.append(sst_k, sst_v)
            if number == last:  # nothing reads the last layer's output for audio rows
                return
            seen_k, seen_v = torch.cat([past_k, key], dim=2), torch.cat([past_v, value], dim=2)
            causal = torch.ones(n, m + n, dtype=torch.bool, device=x.device).tril(m)
            x = x + attention.output(attention.attend(q, seen_k, seen_v, causal))
            x = layer.feed_forward(x)
            if k:
                mask = torch.cat([sst_mask.new_ones(k, m), sst_mask], dim=1)
                seen_k, seen_v = torch.cat([seen_k, sst_k], dim=2), torch.cat([seen_v, sst_v], dim=2)
                heard = attention.attend(rotate(sst_q, sst_query_rotation), seen_k, seen_v, mask)
                s = layer.feed_forward(s + attention.output(heard, sst=True))

    def text(
        self, ids: torch.Tensor, rotation: Rotation, memory: Sequence[KeyValues], cache: Sequence[KeyValues]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read text behind the memory: ids (1, R); appends to `cache`, the text's own keys and values.

        Returns the logits of the last row (1, vocab_size) and its attention to each memory slot, averaged
        over heads, per layer: (layers, M) float32.
        """
        x = self.embed_tokens(ids)
        rows, weights = x.shape[1], []
        for layer, slots, own in zip(self.layers, memory, cache, strict=True):
            attention = layer.self_attn
            q, k, v = attention.project(layer.input_layernorm(x))
            own.append(rotate(k, rotation), v)
            keys = torch.cat([slots.keys, own.keys], dim=2)
            values = torch.cat([slots.values, own.values], dim=2)
            seen = keys.shape[2]
            mask = torch.ones(rows, seen, dtype=torch.bool, device=x.device).tril(seen - rows)
            out, weight = attention.attend_and_weigh(rotate(q, rotation), keys, values, mask)
            weights.append(weight[0, -1, : slots.length])
            x = layer.feed_forward(x + attention.output(out))
        return self.logits(x[:, -1]), torch.stack(weights)

    def texts(
        self,
        ids: torch.Tensor,
        rotation: Rotation,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        filled: int,
        padding: torch.Tensor,
    ) -> torch.Tensor:
        """Read texts of the same length behind B memories: ids (B, R) -> logits of each last row, (B, vocab_size).

        keys and values: per layer one buffer (B, kv_heads, M + longest text, head_dim) that starts with the M rows
        of the memories, filled up to column `filled`; the text's own are written behind. padding (B, M) bool is
        True at rows that belong to no memory: nobody sees these.
        """
        x = self.embed_tokens(ids)
        rows, seen = x.shape[1], filled + x.shape[1]
        mask = torch.ones(rows, seen, dtype=torch.bool, device=x.device).tril(filled).repeat(len(x), 1, 1, 1)
        mask[..., : padding.shape[1]] &= ~padding[:, None, None]
        for layer, own_keys, own_values in zip(self.layers, keys, values, strict=True):
            attention = layer.self_attn
            q, k, v = attention.project(layer.input_layernorm(x))
            own_keys[:, :, filled:seen] = rotate(k, rotation)
            own_values[:, :, filled:seen] = v
            out = attention.attend(rotate(q, rotation), own_keys[:, :, :seen], own_values[:, :, :seen], mask)
            x = layer.feed_forward(x + attention.output(out))
        return self.logits(x[:, -1])

    def whole(
        self,
        x: torch.Tensor,
        query_positions: torch.Tensor,
        key_positions: torch.Tensor,
        mask: torch.Tensor,
        sst_rows: slice,
        pooled: Pooled | None = None,
        checkpointed: bool = False,
    ) -> torch.Tensor:
        """One masked pass: x (B, R, D) with SST embeddings in place, positions (B, R), mask (B, 1, R, R).

        `pooled`: rows and columns as `Attention.pool` takes them, rows counted from the first of x.

        `checkpointed`: a layer's inside is computed again in the backward pass instead of being kept till then.

        Returns (B, R, D) before the final norm.
        """
        q_rotation, k_rotation = self.rotation(query_positions), self.rotation(key_positions)
        before, after = slice(0, sst_rows.start), slice(sst_rows.stop, x.shape[1])
        has_ssts = sst_rows.stop > sst_rows.start

        def through(layer: DecoderLayer, x: torch.Tensor) -> torch.Tensor:
            attention = layer.self_attn
            h = layer.input_layernorm(x)
            if has_ssts:
                heard, (sst_q, sst_k, sst_v) = attention.project(h[:, before]), attention.project(h[:, sst_rows], sst=True)
                if pooled is not None:
                    sst_k, sst_v = sst_k + attention.pool(0, heard[1], *pooled), sst_v + attention.pool(1, heard[2], *pooled)
                parts = [heard, (sst_q, sst_k, sst_v), attention.project(h[:, after])]
                q, k, v = (torch.cat(p, dim=2) for p in zip(*parts, strict=True))
            else:
                q, k, v = attention.project(h)
            out = attention.attend(rotate(q, q_rotation), rotate(k, k_rotation), v, mask)
            if has_ssts and hasattr(attention, "sst_o_proj"):
                out = torch.cat([attention.output(out[:, :, before]), attention.output(out[:, :, sst_rows], sst=True),
                                 attention.output(out[:, :, after])], dim=1)  # fmt: skip
            else:
                out = attention.output(out)
            return layer.feed_forward(x + out)

        for layer in self.layers:
            x = checkpoint(through, layer, x, use_reentrant=False) if checkpointed else through(layer, x)
        return x
