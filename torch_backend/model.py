"""The whole network in one module: speech tower and decoder, and how a checkpoint's tensors become its own."""

from __future__ import annotations

import torch
from torch import nn

from speech_xl.config import ModelConfig
from torch_backend.decoder import Decoder
from torch_backend.encoder import SpeechTower


class SpeechXL(nn.Module):
    """Parameters: `speech.encoder.*` (Whisper's names), `speech.adapter.*` or `speech.recognizer.*`, `decoder.*` (Qwen2's names)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.speech = SpeechTower(config)
        self.decoder = Decoder(config.decoder, config.sst)

    def sanitize(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors as this framework has them: axis order torch's, quantized ones as floats."""
        if self.config.quantization is not None:
            weights = dequantize(weights, **self.config.quantization)
        if self.config.layout == "torch":
            return weights
        return {n: t.transpose(1, 2).contiguous() if ".conv" in n and t.ndim == 3 else t for n, t in weights.items()}


def dequantize(weights: dict[str, torch.Tensor], group_size: int, bits: int) -> dict[str, torch.Tensor]:
    """Replace every (weight uint32, scales, biases) in MLX's format by one float weight.

    A word of a weight (out, in * bits / 32) holds 32 / bits numbers, the lowest bits first; number =
    code * scale + bias of its group. scales and biases are (out, in / group_size).
    """
    layers = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
    found = {n: t for n, t in weights.items() if not n.endswith((".scales", ".biases"))}
    shifts = torch.arange(0, 32, bits)
    for layer in layers:
        words, scales, biases = (weights[f"{layer}.{part}"] for part in ("weight", "scales", "biases"))
        codes = (words.view(torch.int32)[..., None] >> shifts.to(words.device)) & (2**bits - 1)
        groups = codes.flatten(1).unflatten(1, (-1, group_size)).float()
        found[f"{layer}.weight"] = (groups * scales.float()[..., None] + biases.float()[..., None]).flatten(1)
    return found
