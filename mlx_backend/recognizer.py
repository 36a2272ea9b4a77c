"""Whisper's text decoder (arXiv 2212.04356): it reads windows aloud, the likeliest token first, several windows at a time.

It knows token ids, not text: what a Recognition means, and when it is no speech, is the core's business. Tensor
names and mathematics are Whisper's, so its published weights load as they are.

Letters: B windows, R rows of text, S encoder positions, T chosen tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_backend.cpu import gelu
from speech_xl.backend import Recognition
from speech_xl.config import RecognizerConfig


class RecognizerAttention(nn.Module):
    """Attention to rows whose keys and values are kept. Whisper gives the key projection no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(B, R, D) -> keys and values (B, H, R, D / H)."""
        k, v = (
            layer(x).reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3) for layer in (self.k_proj, self.v_proj)
        )
        return k, v

    def __call__(
        self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """-> (B, R, D) and the attention weights (B, H, R, keys) float32; mask (R, keys) is True where a row sees a key."""
        q = self.q_proj(x).reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)
        scores = ((q * q.shape[-1] ** -0.5) @ keys.swapaxes(-1, -2)).astype(mx.float32)
        if mask is not None:
            scores = mx.where(mask, scores, -mx.inf)
        weights = mx.softmax(scores, axis=-1)
        out = (weights.astype(values.dtype) @ values).transpose(0, 2, 1, 3).reshape(x.shape)
        return self.out_proj(out), weights


class RecognizerCache:
    """One layer's keys and values: of the text so far, in buffers of full length, and of the windows that are read."""

    def __init__(self, heard_keys: mx.array, heard_values: mx.array, longest: int):
        # The sound is read again at every token: what lies as the product wants it is read up to twice as fast.
        self._heard_keys = mx.contiguous(heard_keys.swapaxes(-1, -2))  # (B, H, D / H, S)
        self._heard_values = mx.contiguous(heard_values)
        windows, heads, _, head_dim = heard_keys.shape
        self._keys = mx.zeros((windows, heads, longest, head_dim), heard_keys.dtype)
        self._values = mx.zeros_like(self._keys)
        self._length = 0

    @property
    def heard(self) -> tuple[mx.array, mx.array]:
        """Keys and values (B, H, S, D / H)."""
        return self._heard_keys.swapaxes(-1, -2), self._heard_values

    def append(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Take the rows (B, H, R, D / H); return all so far."""
        end = self._length + keys.shape[2]
        self._keys[:, :, self._length : end] = keys
        self._values[:, :, self._length : end] = values
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def keep(self, windows: list[int]) -> None:
        """Forget all windows but these."""
        rows = mx.array(windows)
        self._heard_keys, self._heard_values = self._heard_keys[rows], self._heard_values[rows]
        self._keys, self._values = self._keys[rows], self._values[rows]


class RecognizerLayer(nn.Module):
    """Attention to the text, attention to the sound and a feed-forward layer, each behind a norm and around a residual."""

    def __init__(self, config: RecognizerConfig, width: int):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = RecognizerAttention(width, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = RecognizerAttention(width, config.decoder_attention_heads)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, width)

    def __call__(self, x: mx.array, cache: RecognizerCache, mask: mx.array | None) -> tuple[mx.array, mx.array]:
        """x (B, R, D) -> the same, and the attention to the sound (B, H, R, S) float32."""
        h = self.self_attn_layer_norm(x)
        keys, values = cache.append(*self.self_attn.keys_values(h))
        x = x + self.self_attn(h, keys, values, mask)[0]
        out, weights = self.encoder_attn(self.encoder_attn_layer_norm(x), *cache.heard)
        x = x + out
        return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x)))), weights


class Recognizer(nn.Module):
    """Embeddings, layers, final norm; the language-model head is the token embedding."""

    def __init__(self, config: RecognizerConfig, width: int):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_target_positions, width)
        self.layers = [RecognizerLayer(config, width) for _ in range(config.decoder_layers)]
        self.layer_norm = nn.LayerNorm(width)

    def start(self, heard: mx.array) -> list[RecognizerCache]:
        """The caches for windows that the encoder turned into heard (B, S, D)."""
        longest = self.config.max_target_positions
        return [RecognizerCache(*layer.encoder_attn.keys_values(heard), longest) for layer in self.layers]

    def __call__(
        self, ids: mx.array, position: int, caches: list[RecognizerCache], wanted: Sequence[int] | None = None
    ) -> tuple[mx.array, mx.array]:
        """Read ids (B, R) at `position`.

        Returns logits (B, R, V) float32, of the rows `wanted` or of all, and where in the sound the last row looks:
        (B, S) float32, the mean over the alignment heads.
        """
        rows = ids.shape[1]
        x = self.embed_tokens(ids) + self.embed_positions.weight[position : position + rows]
        mask = None
        if rows > 1:
            mask = mx.tri(rows, position + rows, position, dtype=mx.bool_)
        looks = []
        for number, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            x, weights = layer(x, cache, mask)
            looks += [
                weights[:, head, -1] for layer_number, head in self.config.alignment_heads if layer_number == number
            ]
        if wanted is not None:
            x = x[:, mx.array(list(wanted))]
        return self.embed_tokens.as_linear(self.layer_norm(x)).astype(mx.float32), mx.stack(looks).mean(0)

    def recognize(self, heard: mx.array, before: Sequence[Sequence[int]] = ()) -> list[Recognition]:
        """Greedy reading of heard (B, S, D), one Recognition a window; before[b] stands in front of its start ids."""
        c = self.config
        barred = np.zeros(c.vocab_size, np.float32)
        barred[list(c.suppressed_ids)] = -np.inf
        suppressed = mx.array(barred)
        barred[list(c.begin_suppressed_ids)] = -np.inf
        first = mx.array(barred)
        caches = self.start(heard)
        start = [[*own, *c.start_ids] for own in before or [()] * len(heard)]
        ids = mx.array(start)
        logits, looks = self(ids, 0, caches, (len(start[0]) - len(c.start_ids), -1))
        no_speech = mx.softmax(logits[:, 0], axis=-1)[:, c.no_speech_id].tolist()
        scores, position = logits[:, -1] + first, ids.shape[1]
        open_windows = list(range(len(heard)))
        chosen: list[list[int]] = [[] for _ in open_windows]
        log_probs = [0.0] * len(heard)
        attention: list[list[np.ndarray]] = [[] for _ in open_windows]
        while open_windows:
            best, log_prob = scores.argmax(-1), scores.max(-1) - mx.logsumexp(scores, axis=-1)
            mx.eval(best, log_prob, looks, [(cache._keys, cache._values) for cache in caches])
            each = log_prob.tolist()
            tokens, looks = best.tolist(), np.array(looks)
            for row, window in enumerate(open_windows):
                chosen[window].append(tokens[row])
                log_probs[window] += each[row]
                attention[window].append(looks[row])
            if position == c.max_target_positions:
                break
            going_on = [row for row, token in enumerate(tokens) if token != c.end_id]
            if 0 < len(going_on) < len(open_windows):
                for cache in caches:
                    cache.keep(going_on)
            open_windows = [open_windows[row] for row in going_on]
            if open_windows:
                ids = mx.array([[tokens[row]] for row in going_on])
                logits, looks = self(ids, position, caches)
                scores, position = logits[:, -1] + suppressed, position + 1
        return [
            Recognition(
                ids=[token for token in chosen[window] if token != c.end_id],
                attention=np.stack(attention[window]),
                no_speech=no_speech[window],
                mean_log_prob=log_probs[window] / len(chosen[window]),
            )
            for window in range(len(heard))
        ]
