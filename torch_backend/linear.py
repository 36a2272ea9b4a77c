"""Linear layers that read their weights at the memory's speed where a text is written token by token.

A processor multiplies one row, or a few, as fast as it reads the weights. torch's usual product (MKL) then reads them with
one core, and not with all its speed. With the weights as the left factor, and a number of columns on the right that its
kernels are made for, it is up to three times as fast (docs/performance.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

ROWS = (2, 4, 8, 16, 24, 32)  # rows are filled up to one of these; with more, the usual product is as fast, ...
LARGE = 2**18  # ... and with fewer weights, or fewer outputs than inputs, too


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., inputs), weight (outputs, inputs), bias (outputs,) -> (..., outputs), as torch.nn.functional.linear."""
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    is_faster = 0 < rows <= ROWS[-1] and outputs >= inputs and weight.numel() >= LARGE
    if not is_faster or x.device.type != "cpu" or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    few = x.reshape(rows, inputs)
    if missing := next(n for n in ROWS if n >= rows) - rows:
        few = F.pad(few, (0, 0, 0, missing))
    product = weight @ few.T if bias is None else torch.addmm(bias[:, None], weight, few.T)
    return product[:, :rows].T.contiguous().view(*x.shape[:-1], outputs)


class Linear(nn.Linear):
    """nn.Linear with this product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        return linear(input, self.weight, self.bias)
