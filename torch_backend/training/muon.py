"""Muon (Jordan et al. 2024): momentum made orthogonal by a Newton-Schulz iteration, for hidden matrices.

torch.optim.Muon iterates in bfloat16, which a CPU without bfloat16 units computes about 100 times slower
than float32; this one works in the weights' own type, all matrices of one shape in one batched product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the reference description


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """(B, m, n) with m <= n -> the same with all singular values near 1."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; its size matches AdamW's typical update (0.2 x sqrt(max(m, n)))."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, parameters in by_shape.items():
                directions = []
                for p in parameters:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    directions.append(p.grad.lerp(state["momentum"], group["momentum"]))
                stacked = torch.stack(directions)
                tall = shape[0] > shape[1]
                update = orthogonalise(stacked.mT if tall else stacked)
                scale = 0.2 * max(shape) ** 0.5
                for p, u in zip(parameters, update.mT if tall else update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"] * scale)
