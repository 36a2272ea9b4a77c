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

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_backend.cpu import attend
from mlx_backend.memory import KeyValues
from speech_xl.config import DecoderConfig, SSTConfig

Pooled = tuple[mx.array, mx.array]  # tokens and columns, see Attention.pool
Rotation = tuple[mx.array, mx.array]  # cos, sin of shape (..., R, head_dim), broadcast over heads


def rotate(x: mx.array, rotation: Rotation) -> mx.array:
    """RoPE (arXiv 2104.09864) in the half-split layout of Llama and Qwen2. x (B, H, R, head_dim)."""
    cos, sin = rotation
    left, right = mx.split(x, 2, axis=-1)
    return x * cos + mx.concatenate([-right, left], axis=-1) * sin


def without(rows: mx.array, hidden: tuple[int, int]) -> mx.array:
    """Rows (1, kv_heads, M, head_dim) but hidden[1] of them from row hidden[0] on: those beyond the listening horizon."""
    first, count = hidden
    return mx.concatenate([rows[:, :, :first], rows[:, :, first + count :]], axis=2) if count else rows


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
                self.sst_pool = mx.zeros((2, self.kv_heads, sum(sst.ratios)))

    def project(self, x: mx.array, sst: bool = False) -> tuple[mx.array, mx.array, mx.array]:
        """(B, R, D) -> unrotated q (B, H, R, head_dim), k and v (B, kv_heads, R, head_dim)."""
        if sst and "sst_q_proj" in self:
            layers = self.sst_q_proj, self.sst_k_proj, self.sst_v_proj
        else:
            layers = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (layer(x).reshape(*x.shape[:2], -1, self.head_dim).transpose(0, 2, 1, 3) for layer in layers)
        return q, k, v

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

    def attend_and_weigh(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> tuple[mx.array, mx.array]:
        """The same, returning the attention weights too, averaged over heads: (B, R, keys) float32."""
        b, _, rows, width = q.shape
        q = q.reshape(b, self.kv_heads, -1, rows, width)  # (B, kv_heads, group, R, head_dim)
        scores = (q @ k[:, :, None].swapaxes(-1, -2)).astype(mx.float32) / math.sqrt(self.head_dim)
        weights = mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1)
        out = (weights.astype(v.dtype) @ v[:, :, None]).reshape(b, self.heads, rows, width)
        return out, weights.mean((1, 2))

    def most_attended(
        self,
        q: mx.array,
        k: mx.array,
        unrotated: mx.array,
        v: mx.array,
        slot_rotation: Rotation,
        attended_rows: Callable[[np.ndarray], np.ndarray],
    ) -> tuple[mx.array, mx.array]:
        """Keys and values (1, kv_heads, m, head_dim) of the rows that their own interval attends to most, per head.

        `attended_rows`: which these are, by the attention that each row gets; see IntervalPlan.
        """
        b, _, n, width = q.shape
        causal = mx.tri(n, n, dtype=mx.bool_)
        grouped = q.reshape(b, self.kv_heads, -1, n, width)
        scores = (grouped @ k[:, :, None].swapaxes(-1, -2)).astype(mx.float32) / math.sqrt(self.head_dim)
        weights = mx.softmax(mx.where(causal, scores, -mx.inf), axis=-1).sum((2, 3))  # (1, kv_heads, n)
        rows = mx.array(attended_rows(np.array(weights)))[..., None]
        take = mx.broadcast_to(rows, (*rows.shape[:-1], width))
        return rotate(mx.take_along_axis(unrotated, take, axis=2), slot_rotation), mx.take_along_axis(v, take, axis=2)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, sst)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def feed_forward(self, x: mx.array) -> mx.array:
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers, final norm and the language-model head."""

    def __init__(self, config: DecoderConfig, sst: SSTConfig | None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config, sst) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if sst is not None:
            self.sst_embedding = mx.zeros(config.hidden_size)

    def rotation(self, positions: mx.array) -> Rotation:
        """positions (R,) or (B, R) int64 -> cos and sin, (R, head_dim) or (B, 1, R, head_dim).

        Angles are computed in float32 whatever the weights' type: bfloat16 cannot tell position 257 from 256.
        """
        pairs = mx.arange(0, self.config.head_dim, 2).astype(mx.float32)
        frequencies = self.config.rope_theta ** (-pairs / self.config.head_dim)
        angles = positions.astype(mx.float32)[..., None] * frequencies
        angles = mx.concatenate([angles, angles], axis=-1)
        if positions.ndim == 2:
            angles = angles[:, None]
        dtype = self.norm.weight.dtype
        return mx.cos(angles).astype(dtype), mx.sin(angles).astype(dtype)

    def logits(self, x: mx.array) -> mx.array:
        """(..., D) before the final norm -> (..., vocab_size)."""
        x = self.norm(x)
        return self.lm_head(x) if "lm_head" in self else self.embed_tokens.as_linear(x)

    def evict(self, memory: Sequence[KeyValues], first: int, count: int, back: Rotation) -> None:
        """Forget slots [first, first + count); those behind move up, rotated `back` by as many positions."""
        for cache in memory:
            keys, values = rotate(cache.keys[:, :, first + count :], back), cache.values[:, :, first + count :]
            cache.cut(first)
            cache.append(keys, values)

    def interval(
        self,
        speech: mx.array,
        memory: Sequence[KeyValues],
        speech_rotation: Rotation,
        sst_query_rotation: Rotation,
        slot_rotation: Rotation,
        sst_mask: mx.array,
        selection: mx.array | None = None,
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
        s = mx.broadcast_to(self.sst_embedding, (1, k, speech.shape[2])) if k else None
        last = len(self.layers) - 1
        for number, (layer, cache) in enumerate(zip(self.layers, memory, strict=True)):
            attention = layer.self_attn
            past_k, past_v = without(cache.keys, hidden), without(cache.values, hidden)  # what lies before this interval
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
            seen_k, seen_v = mx.concatenate([past_k, key], axis=2), mx.concatenate([past_v, value], axis=2)
            causal = mx.tri(n, m + n, m, dtype=mx.bool_)
            x = x + attention.output(attention.attend(q, seen_k, seen_v, causal))
            x = layer.feed_forward(x)
            if k:
                mask = mx.concatenate([mx.ones((k, m), mx.bool_), sst_mask], axis=1)
                seen_k, seen_v = mx.concatenate([seen_k, sst_k], axis=2), mx.concatenate([seen_v, sst_v], axis=2)
                heard = attention.attend(rotate(sst_q, sst_query_rotation), seen_k, seen_v, mask)
                s = layer.feed_forward(s + attention.output(heard, sst=True))

    def text(
        self, ids: mx.array, rotation: Rotation, memory: Sequence[KeyValues], cache: Sequence[KeyValues]
    ) -> tuple[mx.array, mx.array]:
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
            keys = mx.concatenate([slots.keys, own.keys], axis=2)
            values = mx.concatenate([slots.values, own.values], axis=2)
            seen = keys.shape[2]
            mask = mx.tri(rows, seen, seen - rows, dtype=mx.bool_)
            out, weight = attention.attend_and_weigh(rotate(q, rotation), keys, values, mask)
            weights.append(weight[0, -1, : slots.length])
            x = layer.feed_forward(x + attention.output(out))
        return self.logits(x[:, -1]), mx.stack(weights)

    def texts(
        self,
        ids: mx.array,
        rotation: Rotation,
        keys: Sequence[mx.array],
        values: Sequence[mx.array],
        filled: int,
        padding: mx.array,
    ) -> mx.array:
        """Read texts of the same length behind B memories: ids (B, R) -> logits of each last row, (B, vocab_size).

        keys and values: per layer one buffer (B, kv_heads, M + longest text, head_dim) that starts with the M rows
        of the memories, filled up to column `filled`; the text's own are written behind. padding (B, M) bool is
        True at rows that belong to no memory: nobody sees these.
        """
        x = self.embed_tokens(ids)
        rows, seen = x.shape[1], filled + x.shape[1]
        mask = mx.repeat(mx.tri(rows, seen, filled, dtype=mx.bool_)[None, None], len(x), axis=0)
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
        x: mx.array,
        query_positions: mx.array,
        key_positions: mx.array,
        mask: mx.array,
        sst_rows: slice,
        pooled: Pooled | None = None,
    ) -> mx.array:
        """One masked pass: x (B, R, D) with SST embeddings in place, positions (B, R), mask (B, 1, R, R).

        `pooled`: rows and columns as `Attention.pool` takes them, rows counted from the first of x.

        Returns (B, R, D) before the final norm.
        """
        q_rotation, k_rotation = self.rotation(query_positions), self.rotation(key_positions)
        before, after = slice(0, sst_rows.start), slice(sst_rows.stop, x.shape[1])
        for layer in self.layers:
            attention = layer.self_attn
            h = layer.input_layernorm(x)
            parts = [attention.project(h[:, before]), attention.project(h[:, after])]
            if sst_rows.stop > sst_rows.start:
                sst_q, sst_k, sst_v = attention.project(h[:, sst_rows], sst=True)
                if pooled is not None:
                    heard = parts[0]
                    sst_k, sst_v = sst_k + attention.pool(0, heard[1], *pooled), sst_v + attention.pool(1, heard[2], *pooled)
                parts.insert(1, (sst_q, sst_k, sst_v))
            q, k, v = (mx.concatenate(p, axis=2) for p in zip(*parts, strict=True))
            out = attention.attend(rotate(q, q_rotation), rotate(k, k_rotation), v, mask)
            outputs = [attention.output(out[:, :, before]), attention.output(out[:, :, after])]
            if sst_rows.stop > sst_rows.start:
                outputs.insert(1, attention.output(out[:, :, sst_rows], sst=True))
            x = layer.feed_forward(x + mx.concatenate(outputs, axis=1))
        return x
