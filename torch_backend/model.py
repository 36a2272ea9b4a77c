"""The whole network in one module: speech tower and decoder, as a checkpoint stores them."""

from __future__ import annotations

from torch import nn

from speech_xl.config import ModelConfig
from torch_backend.decoder import Decoder
from torch_backend.encoder import SpeechTower


class SpeechXL(nn.Module):
    """Parameters: `speech.encoder.*` (Whisper's names), `speech.adapter.*`, `decoder.*` (Qwen2's names)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.speech = SpeechTower(config)
        self.decoder = Decoder(config.decoder, config.sst)
