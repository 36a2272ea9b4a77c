"""How many operations and bytes the work needs, counted from the configuration: the limit that time is measured against.

Only products of matrices count, a multiplication and an addition as two operations, and only what somebody reads: what a
row does not see, and the last layer's output for rows that nobody asks, is work that need not be done (docs/sst.md). It
knows shapes and plans, no tensors and no time.

Letters: n speech tokens of an interval, K SSTs, M memory slots, R rows of text, S encoder positions, T tokens of a window,
D width.
"""

from __future__ import annotations

import math

import numpy as np

from speech_xl.checkpoints import expected_tensors
from speech_xl.config import DecoderConfig, ModelConfig
from speech_xl.schedule import IntervalPlan


def product(rows: int, inputs: int, outputs: int) -> int:
    """Operations of (rows, inputs) @ (inputs, outputs)."""
    return 2 * rows * inputs * outputs


def window_operations(config: ModelConfig) -> int:
    """The encoder on one window: two convolutions of three taps, then layers in which every position sees all."""
    e = config.encoder
    positions, width = e.max_source_positions, e.d_model
    convolutions = product(e.window_frames, 3 * e.num_mel_bins, width) + product(positions, 3 * width, width)
    projections = 4 * product(positions, width, width)
    attention = 2 * product(positions, width, positions)
    feed_forward = 2 * product(positions, width, e.encoder_ffn_dim)
    return convolutions + e.encoder_layers * (projections + attention + feed_forward)


def adapter_operations(config: ModelConfig) -> int:
    """The adapter on one window's kept positions."""
    a, width = config.adapter, config.decoder.hidden_size
    assert a is not None
    inner = a.hidden_size or width
    first = product(config.tokens_per_window, config.encoder.d_model * a.stack, inner)
    return first + (product(config.tokens_per_window, inner, width) if a.hidden_size else 0)


def reading_operations(config: ModelConfig, start: int, tokens: int) -> int:
    """The recogniser on one window: `start` rows at once, then a row a token, the `tokens`-th of which is the end.

    Logits are needed of the row that chooses, and of the one that tells silence where that is another.
    """
    r, width, positions = config.recognizer, config.encoder.d_model, config.encoder.max_source_positions
    assert r is not None
    rows = start + tokens - 1
    heard = 2 * product(positions, width, width)  # keys and values of the sound, once
    projections = 6 * product(rows, width, width)
    sound = 2 * product(rows, width, positions)
    text = 2 * 2 * width * (rows * (rows + 1) // 2)
    feed_forward = 2 * product(rows, width, r.decoder_ffn_dim)
    logits = product(tokens + (start > 1), width, r.vocab_size)
    return r.decoder_layers * (heard + projections + sound + text + feed_forward) + logits


def _queries_out(d: DecoderConfig, rows: int) -> int:
    """q and o projections and the gated feed-forward of rows that go on to the next layer."""
    attention = product(rows, d.hidden_size, d.num_attention_heads * d.head_dim)
    return 2 * attention + 3 * product(rows, d.hidden_size, d.intermediate_size)


def _keys_values(d: DecoderConfig, rows: int) -> int:
    return 2 * product(rows, d.hidden_size, d.num_key_value_heads * d.head_dim)


def _attention(d: DecoderConfig, pairs: int) -> int:
    """Scores and sums over `pairs` of a row and a row that it sees."""
    return 2 * 2 * pairs * d.num_attention_heads * d.head_dim


def interval_operations(config: ModelConfig, plan: IntervalPlan) -> int:
    """The decoder on one interval, from what its plan sees; of a summarizer without training the layers alone."""
    return sum(interval_parts(config, plan))


def interval_parts(config: ModelConfig, plan: IntervalPlan) -> tuple[int, int]:
    """The same as (products with weights, attention).

    Of the last layer only the keys and values that are kept are read. Where these are the SSTs' own, nobody reads what
    the layer before it makes of speech rows, either, beyond their keys and values.
    """
    d = config.decoder
    n, k = plan.tokens, plan.ssts
    seen = plan.base - plan.evicted - plan.hidden
    speech_pairs, sst_pairs = n * seen + n * (n + 1) // 2, k * seen + int(plan.sst_mask().sum())
    is_pooled = k > 0 and config.sst is not None and config.sst.pooled
    pooled = sum(len(np.unique(tokens)) for tokens in plan.pooled_tokens()) if is_pooled else 0
    pooling = 2 * 2 * pooled * d.num_key_value_heads * d.head_dim
    keys = _keys_values(d, n + k)
    whole_layers = d.num_hidden_layers - 1
    products = whole_layers * (_queries_out(d, n + k) + keys) + d.num_hidden_layers * pooling
    attention = whole_layers * _attention(d, speech_pairs + sst_pairs)
    if not k or is_pooled:
        return products + keys, attention
    if whole_layers:
        products, attention = products - _queries_out(d, n), attention - _attention(d, speech_pairs)
    return products + _keys_values(d, k), attention


def text_operations(config: ModelConfig, rows: int, slots: int) -> int:
    """The decoder on `rows` of text behind M slots, up to the logits of the last row."""
    d = config.decoder
    pairs = rows * slots + rows * (rows + 1) // 2
    layer = _queries_out(d, rows) + _keys_values(d, rows) + _attention(d, pairs)
    last = _queries_out(d, 1) + _keys_values(d, rows) + _attention(d, slots + rows)
    return (d.num_hidden_layers - 1) * layer + last + product(1, d.hidden_size, d.vocab_size)


def weights(config: ModelConfig, *prefixes: str, without: str | None = None) -> int:
    """How many numbers the tensors whose names start with a prefix hold."""
    shapes = expected_tensors(config).items()
    return sum(math.prod(s) for name, s in shapes if name.startswith(prefixes) and not (without and without in name))


def token_bytes(config: ModelConfig, itemsize: int, memory_bytes: int) -> int:
    """Bytes that one token of an answer has to read: the decoder's own weights and head, and the memory, once each."""
    d = config.decoder
    layers = weights(config, "decoder.layers.", "decoder.norm.", without=".sst_")
    return (layers + d.vocab_size * d.hidden_size) * itemsize + memory_bytes
