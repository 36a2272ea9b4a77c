"""The whole network in one module: speech tower and decoder, as a checkpoint stores them."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlx_backend.decoder import Decoder
from mlx_backend.encoder import SpeechTower
from speech_xl.config import ModelConfig


class SpeechXL(nn.Module):
    """Parameters: `speech.encoder.*` (Whisper's names), `speech.adapter.*` or `speech.recognizer.*`, `decoder.*` (Qwen2's names)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.speech = SpeechTower(config)
        self.decoder = Decoder(config.decoder, config.sst)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """A checkpoint's tensors as this framework lays them out: MLX convolves over (out, kernel, in)."""
        if self.config.layout == "mlx":
            return weights
        return {name: t.swapaxes(1, 2) if ".conv" in name and t.ndim == 3 else t for name, t in weights.items()}
