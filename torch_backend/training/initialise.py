"""How training's weights begin. It knows the network's modules and no data."""

from __future__ import annotations

import math

import torch
from torch import nn

from torch_backend.decoder import Decoder
from torch_backend.model import SpeechXL


def sinusoids(length: int, channels: int) -> torch.Tensor:
    """Whisper's fixed position table, (length, channels) (arXiv 2212.04356: sinusoidal embeddings)."""
    steps = torch.exp(-math.log(10_000) / (channels // 2 - 1) * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@torch.no_grad()
def initialise(model: SpeechXL, seed: int) -> None:
    """Draw every weight from `seed`. Token embeddings have unit length: alignment measures speech by them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, 0.7 / math.sqrt(fan_in), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    for layer in model.decoder.layers:  # residual branches start small, as in GPT-2
        for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
            output.weight.mul_(1 / math.sqrt(2 * len(model.decoder.layers)))
    embeddings = model.decoder.embed_tokens.weight
    embeddings.normal_(0, 1, generator=generator)
    embeddings.div_(embeddings.norm(dim=1, keepdim=True))
    positions = model.speech.encoder.embed_positions
    positions.weight.copy_(sinusoids(*positions.weight.shape))
    positions.weight.requires_grad_(False)


@torch.no_grad()
def copy_into_sst(decoder: Decoder, end_of_text: int) -> None:
    """SST projections start as copies of the base ones, the SST embedding as the end-of-text token's."""
    for layer in decoder.layers:
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            if hasattr(attention, f"sst_{name}"):
                getattr(attention, f"sst_{name}").load_state_dict(getattr(attention, name).state_dict())
    decoder.sst_embedding.copy_(decoder.embed_tokens.weight[end_of_text])
