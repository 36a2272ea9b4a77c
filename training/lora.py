"""Low-rank adapters on linear layers (LoRA, arXiv 2106.09685), named and scaled as peft names and scales them.

It knows linear layers and their names, nothing of what they are part of.
"""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from training.recipe import LoraConfig, RecipeError


class LoraLinear(nn.Module):
    """A frozen linear layer and its update: W x + B A x * alpha / rank. A is drawn, B starts at zero."""

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator):
        super().__init__()
        self.base_layer = base
        self.scaling = config.alpha / config.rank
        bound = 1 / math.sqrt(base.in_features)  # peft's: kaiming_uniform_ with a = sqrt(5)
        with torch.device("meta"):  # what these draw themselves is not wanted
            self.lora_A = nn.Linear(base.in_features, config.rank, bias=False)
            self.lora_B = nn.Linear(config.rank, base.out_features, bias=False)
        if not base.weight.is_meta:
            a = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
            self.lora_A.weight = nn.Parameter(a)
            self.lora_B.weight = nn.Parameter(torch.zeros(base.out_features, config.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.base_layer(x) + self.lora_B(self.lora_A(x)) * self.scaling


def add_lora(model: nn.Module, config: LoraConfig, seed: int) -> int:
    """Put adapters on every linear layer whose name matches; returns how many."""
    generator = torch.Generator().manual_seed(seed)
    found = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(config.targets, n)]
    if not found:
        raise RecipeError(f"No linear layer is called {config.targets!r}; correct the recipe's lora.targets.")
    for name in found:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, LoraLinear(getattr(owner, child), config, generator))
    return len(found)


def adapters_of(model: nn.Module) -> dict[str, LoraLinear]:
    """Every adapted layer by the name that the linear layer has in a checkpoint."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def our_name(name: str) -> str:
    """A parameter's name as a checkpoint has it: an adapted layer's own weight keeps its name."""
    return name.replace(".base_layer.", ".")


def merged(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """(out, in) float32: the one weight that does what a weight (out, in) and its adapter A (r, in), B (out, r) do."""
    return base.float() + b.float() @ a.float() * scaling
