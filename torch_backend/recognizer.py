"""Whisper's text decoder (arXiv 2212.04356): it reads windows aloud, the likeliest token first, several windows at a time.

It knows token ids, not text: what a Recognition means, and when it is no speech, is the core's business. Tensor
names and mathematics are Whisper's, so its published weights load as they are.

Letters: B windows, R rows of text, S encoder positions, T chosen tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speech_xl.backend import Recognition
from speech_xl.config import RecognizerConfig
from torch_backend.linear import Linear, linear


class RecognizerAttention(nn.Module):
    """Attention to rows whose keys and values are kept. Whisper gives the key projection no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, R, D) -> keys and values (B, H, R, D / H)."""
        k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.k_proj, self.v_proj))
        return k, v

    def forward(
        self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (B, R, D) and the attention weights (B, H, R, keys) float32; mask (R, keys) is True where a row sees a key."""
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = ((q * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)).float()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        out = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        return self.out_proj(out), weights


class RecognizerCache:
    """One layer's keys and values: of the text so far, in buffers of full length, and of the windows that are read."""

    def __init__(self, heard_keys: torch.Tensor, heard_values: torch.Tensor, longest: int):
        # The sound is read again at every token: what lies as the product wants it is read up to twice as fast.
        self._heard = [part.transpose(-1, -2).contiguous() for part in (heard_keys, heard_values)]  # (B, H, D / H, S)
        windows, heads, _, head_dim = heard_keys.shape
        self._keys = heard_keys.new_empty(windows, heads, longest, head_dim)
        self._values = torch.empty_like(self._keys)
        self._length = 0

    @property
    def heard(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, H, S, D / H)."""
        keys, values = (part.transpose(-1, -2) for part in self._heard)
        return keys, values

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the rows (B, H, R, D / H); return all so far."""
        end = self._length + keys.shape[2]
        self._keys[:, :, self._length : end] = keys
        self._values[:, :, self._length : end] = values
        self._length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def keep(self, windows: list[int]) -> None:
        """Forget all windows but these."""
        self._heard = [part[windows] for part in self._heard]
        self._keys, self._values = self._keys[windows], self._values[windows]


class RecognizerLayer(nn.Module):
    """Attention to the text, attention to the sound and a feed-forward layer, each behind a norm and around a residual."""

    def __init__(self, config: RecognizerConfig, width: int):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = RecognizerAttention(width, config.decoder_attention_heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = RecognizerAttention(width, config.decoder_attention_heads)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, config.decoder_ffn_dim)
        self.fc2 = Linear(config.decoder_ffn_dim, width)

    def forward(
        self, x: torch.Tensor, cache: RecognizerCache, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, R, D) -> the same, and the attention to the sound (B, H, R, S) float32."""
        h = self.self_attn_layer_norm(x)
        keys, values = cache.append(*self.self_attn.keys_values(h))
        x = x + self.self_attn(h, keys, values, mask)[0]
        out, weights = self.encoder_attn(self.encoder_attn_layer_norm(x), *cache.heard)
        x = x + out
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))), weights


class Recognizer(nn.Module):
    """Embeddings, layers, final norm; the language-model head is the token embedding."""

    def __init__(self, config: RecognizerConfig, width: int):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_target_positions, width)
        self.layers = nn.ModuleList(RecognizerLayer(config, width) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(width)
        self.lm_head: Any = None  # where it is packed apart from the embedding

    def start(self, heard: torch.Tensor) -> list[RecognizerCache]:
        """The caches for windows that the encoder turned into heard (B, S, D)."""
        longest = self.config.max_target_positions
        heard_rows = (layer.encoder_attn.keys_values(heard) for layer in self.layers)
        return [RecognizerCache(keys, values, longest) for keys, values in heard_rows]

    def forward(
        self, ids: torch.Tensor, position: int, caches: list[RecognizerCache], wanted: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read ids (B, R) at `position`.

        Returns logits (B, R, V) float32, of the rows `wanted` or of all, and where in the sound the last row looks:
        (B, S) float32, the mean over the alignment heads.
        """
        rows = ids.shape[1]
        x = self.embed_tokens(ids) + self.embed_positions.weight[position : position + rows]
        mask = None
        if rows > 1:
            mask = torch.ones(rows, position + rows, dtype=torch.bool, device=ids.device).tril(position)
        looks = []
        for number, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            x, weights = layer(x, cache, mask)
            looks += [
                weights[:, head, -1] for layer_number, head in self.config.alignment_heads if layer_number == number
            ]
        if wanted is not None:
            x = x[:, list(wanted)]
        x = self.layer_norm(x)
        logits = linear(x, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)
        return logits.float(), torch.stack(looks).mean(0)

    def recognize(self, heard: torch.Tensor, before: Sequence[Sequence[int]] = ()) -> list[Recognition]:
        """Greedy reading of heard (B, S, D), one Recognition a window; before[b] stands in front of its start ids."""
        c = self.config
        suppressed = torch.zeros(c.vocab_size, device=heard.device)
        suppressed[list(c.suppressed_ids)] = -torch.inf
        first = suppressed.clone()
        first[list(c.begin_suppressed_ids)] = -torch.inf
        caches = self.start(heard)
        start = [[*own, *c.start_ids] for own in before or [()] * len(heard)]
        ids = torch.tensor(start, device=heard.device)
        logits, looks = self(ids, 0, caches, (len(start[0]) - len(c.start_ids), -1))
        no_speech = logits[:, 0].softmax(-1)[:, c.no_speech_id].tolist()
        scores, position = logits[:, -1] + first, ids.shape[1]
        open_windows = list(range(len(heard)))
        chosen: list[list[int]] = [[] for _ in open_windows]
        log_probs = [0.0] * len(heard)
        attention: list[list[torch.Tensor]] = [[] for _ in open_windows]
        while open_windows:
            best = scores.max(-1)
            each = (best.values - scores.logsumexp(-1)).tolist()
            tokens, looks = best.indices.tolist(), looks.cpu()
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
                ids = torch.tensor([[tokens[row]] for row in going_on], device=heard.device)
                logits, looks = self(ids, position, caches)
                scores, position = logits[:, -1] + suppressed, position + 1
        return [
            Recognition(
                ids=[token for token in chosen[window] if token != c.end_id],
                attention=torch.stack(attention[window]).numpy(),
                no_speech=no_speech[window],
                mean_log_prob=log_probs[window] / len(chosen[window]),
            )
            for window in range(len(heard))
        ]
