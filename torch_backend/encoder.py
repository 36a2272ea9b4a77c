"""From log-mel windows to speech tokens: a Whisper encoder, and the adapter or recogniser that joins it to the decoder.

It knows windows, not recordings: which windows there are and which tokens of the last one count is the
core's business. Tensor names and mathematics are Whisper's (arXiv 2212.04356), so its published weights
load as they are.

Letters: B windows, T mel frames, S encoder positions (T / 2), N speech tokens, D width, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speech_xl.config import AdapterConfig, EncoderConfig, ModelConfig
from torch_backend.recognizer import Recognizer


class EncoderAttention(nn.Module):
    """Full self-attention inside one window. Whisper gives the key projection no bias."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.heads = config.encoder_attention_heads
        self.q_proj = nn.Linear(config.d_model, config.d_model)
        self.k_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = nn.Linear(config.d_model, config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (B, S, D) -> the same; mask (B, 1, 1, S) is True where a position may be seen, None: everywhere."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, S, D / H)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and around a residual."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.self_attn = EncoderAttention(config)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (B, S, D) -> the same; mask as in EncoderAttention."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class Encoder(nn.Module):
    """Whisper's encoder, with Qwen2-Audio's pooling before the last norm where `pool` > 1."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, mel: torch.Tensor, valid_positions: torch.Tensor | None = None) -> torch.Tensor:
        """mel (B, num_mel_bins, T), valid_positions (B,) int64 or None -> (B, S / pool, d_model).

        `valid_positions` counts the positions of each window that attention may see (`mask_padding`).
        """
        x = F.gelu(self.conv1(mel))
        x = F.gelu(self.conv2(x)).transpose(1, 2) + self.embed_positions.weight
        mask = None
        if self.config.mask_padding and valid_positions is not None:
            mask = torch.arange(x.shape[1], device=x.device) < valid_positions[:, None]
            mask = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        if self.config.pool > 1:
            x = F.avg_pool1d(x.transpose(1, 2), self.config.pool).transpose(1, 2)
        return self.layer_norm(x)


class Adapter(nn.Module):
    """Frame stacking, then one linear layer or linear-GELU-linear, to the decoder's width."""

    def __init__(self, config: AdapterConfig, encoder_width: int, decoder_width: int):
        super().__init__()
        self.stack = config.stack
        inner = config.hidden_size or decoder_width
        self.linear_1 = nn.Linear(encoder_width * config.stack, inner, bias=config.bias)
        self.linear_2 = None
        if config.hidden_size is not None:
            self.linear_2 = nn.Linear(inner, decoder_width, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, d_model) -> (B, S / stack, hidden_size of the decoder)."""
        x = self.linear_1(x.unflatten(1, (-1, self.stack)).flatten(2))
        return x if self.linear_2 is None else self.linear_2(F.gelu(x))


class SpeechTower(nn.Module):
    """Encoder, removal of each window's context, and an adapter or a recogniser."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.adapter: Any = None  # an Adapter ...
        self.recognizer: Any = None  # ... or a Recognizer
        if config.adapter is not None:
            self.adapter = Adapter(config.adapter, config.encoder.d_model, config.decoder.hidden_size)
        if config.recognizer is not None:
            self.recognizer = Recognizer(config.recognizer, config.encoder.d_model)

    def forward(self, mel: torch.Tensor, valid_positions: torch.Tensor | None = None) -> torch.Tensor:
        """mel (B, num_mel_bins, T) -> speech tokens (B, tokens_per_window, hidden_size)."""
        x = self.encoder(mel, valid_positions)
        context = self.config.encoder.context_positions // self.config.encoder.pool
        if context:
            x = x[:, context:-context]
        return self.adapter(x)
