"""Linear layers for processors whose weights stay in the 16 bits that a checkpoint stores them in.

FBGEMM's kernel widens each weight to float32 where it multiplies, and sums in float32: the numbers are those of float32 weights,
half as much is read, and where rows are few it is two to five times as fast as torch's usual product (docs/performance.md). It
comes with torch, on x86 processors. Putting weights in its order takes seconds, so that is done while the program goes on.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from speech_xl.allocator import release_free_memory
from torch_backend.linear import LARGE, Linear
from torch_backend.model import SpeechXL


class PackedLinear(nn.Module):
    """x (..., inputs) float32 -> (..., outputs) float32, as nn.Linear, once it is packed; its state is nn.Linear's, too."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self._stored = weight.detach(), None if bias is None else bias.detach()
        self._packed: Any = None

    def pack(self) -> None:
        """Put the weights in FBGEMM's order, and let go of those that were given."""
        weight, bias = self._stored
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
        del self._stored

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        return torch.ops.quantized.linear_dynamic_fp16(input, self._packed)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight, bias = torch.ops.quantized.linear_unpack_fp16(self._packed)
        destination[f"{prefix}weight"] = weight
        if bias is not None:
            destination[f"{prefix}bias"] = bias


def can_pack(*weights: torch.Tensor) -> bool:
    """Whether they are stored in 16 bits, FBGEMM's float16 holds the same numbers but for parts below 2**-25, and they are
    large enough, one below the other, to gain by it.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines or sum(w.numel() for w in weights) < LARGE:
        return False
    most = torch.finfo(torch.float16).max
    return all(w.dtype == torch.float16 or (w.dtype == torch.bfloat16 and bool(w.abs().max() <= most)) for w in weights)


def replace_layers(model: SpeechXL) -> list[PackedLinear]:
    """Replace the layers of a decoder and a recogniser that can be packed -> what has to be packed before `model` is used.

    Few rows or many, packed weights serve. An encoder, which always has many, stays as it is. Queries, keys and values of the
    decoder are packed as one product for text; intervals, which have many rows, need them one by one, as they are.
    """
    found: list[PackedLinear] = []
    for layer in model.decoder.layers:
        attention = layer.self_attn
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        if can_pack(*(part.weight for part in parts)):
            biases = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
            found.append(PackedLinear(torch.cat([part.weight for part in parts]), biases))
            attention.together = found[-1].forward
    for part in (model.decoder, model.speech.recognizer):
        if part is None:
            continue
        if part.lm_head is None and can_pack(part.embed_tokens.weight):
            found.insert(0, PackedLinear(part.embed_tokens.weight, None))  # the largest first
            part.lm_head = found[0].forward  # the embedding's weights a second time: no part of the model's state
        for parent in list(part.modules()):
            for name, child in list(parent.named_children()):
                is_held = name in ("q_proj", "k_proj", "v_proj") and getattr(parent, "together", None) is not None
                if isinstance(child, Linear) and can_pack(child.weight) and not is_held:
                    found.append(PackedLinear(child.weight, child.bias))
                    setattr(parent, name, found[-1])
    return found


def pack_all(layers: list[PackedLinear]) -> Future[None]:
    """Pack in as many threads as torch computes with, while the caller goes on."""

    def work() -> None:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for _ in threads.map(PackedLinear.pack, layers):
                pass
        release_free_memory()  # each weight was float32 for a moment

    starter = ThreadPoolExecutor(1, thread_name_prefix="speech-xl-pack")
    packed = starter.submit(work)
    starter.shutdown(wait=False)
    return packed
