"""Cross-entropy of the rows that answer, a few at a time: logits of a whole vocabulary are the largest thing in a pass.

It knows the decoder's head and targets; which rows answer has been chosen before.

Letters: A answer rows, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from torch_backend.decoder import Decoder

LOGITS = 2**26  # numbers that exist at a time: 256 MiB in float32


def token_losses(decoder: Decoder, x: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (A, D) before the final norm, targets (A,) int64 -> losses (A,) float32, and 1.0 where the best token is right.

    More rows than fit into LOGITS go in parts, whose logits backward computes again.
    """
    size = rows_at_once(decoder.config.vocab_size)
    if len(x) <= size:
        return _losses(decoder, x, targets)
    parts = [
        checkpoint(_losses, decoder, x[i : i + size], targets[i : i + size], use_reentrant=False)
        for i in range(0, len(x), size)
    ]
    losses, right = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(right)


def rows_at_once(vocab_size: int) -> int:
    """Rows whose logits exist at a time."""
    return max(1, LOGITS // vocab_size)


def _losses(decoder: Decoder, x: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = decoder.logits(x)
    right = (logits.detach().argmax(-1) == targets).float()
    return F.cross_entropy(logits.float(), targets, reduction="none"), right
