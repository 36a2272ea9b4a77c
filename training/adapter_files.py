"""Adapter folders as peft keeps them: adapter_config.json and adapter_model.safetensors, written and read.

A decoder's layers have the names that transformers gives them, so that peft puts the adapter on the published decoder;
what has no place there (adapters of SST projections or of the encoder) keeps its own name, which peft passes over. It knows
names and files; which layers are adapted is lora.py's business.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.export import folder_of
from training.lora import LoraLinear
from training.recipe import LoraConfig, RecipeError
from training.sharding import share_of, whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's
UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "lora_bias",
)

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # our layer's name -> A (r, in), B (out, r)


def their_name(layer: str) -> str:
    """transformers' name of a decoder's layer; other parts have none, and keep ours."""
    return layer.replace("decoder.", "model.", 1) if layer.startswith("decoder.") else layer


def our_layer(name: str) -> str:
    """The other way round."""
    return name.replace("model.", "decoder.", 1) if name.startswith("model.") else name


@torch.no_grad()
def factors_of(adapters: dict[str, LoraLinear], keeps: bool = True) -> Factors:
    """Whole factors of all adapted layers, on the CPU; all processes call this together, see export.changed_tensors."""
    found: Factors = {}
    for name, layer in adapters.items():
        pair = whole(layer.lora_A.weight), whole(layer.lora_B.weight)
        if keeps:
            found[name] = pair[0].cpu().clone(), pair[1].cpu().clone()
    return found


def save_adapter(factors: Factors, config: LoraConfig, base: str, folder: Path) -> None:
    """Write an adapter folder. `base` is what it was trained on, in words or as a path. OutputError where that cannot be."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (a, b) in factors.items():
        layer = PREFIX + their_name(name)
        tensors |= {f"{layer}.lora_A.weight": a.contiguous(), f"{layer}.lora_B.weight": b.contiguous()}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": sorted(map(their_name, factors)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with folder_of(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_adapter(folder: Path) -> tuple[int, float, Factors]:
    """-> rank, alpha and factors of an adapter folder; RecipeError says what about it cannot be used."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"The adapter {folder} cannot be read ({error}); name a folder that peft saved.") from None
    if settings.get("peft_type") != "LORA":
        raise RecipeError(f"The adapter {folder} is of the type {settings.get('peft_type')}; only LORA can be read.")
    if used := [name for name in UNSUPPORTED if settings.get(name)]:
        raise RecipeError(f"The adapter {folder} uses {', '.join(used)}, which is not supported; save it without.")
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, half = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        halves.setdefault(our_layer(layer), {})[half] = tensor
    if not halves or any(set(found) != {"lora_A", "lora_B"} for found in halves.values()):
        raise RecipeError(
            f"The adapter {folder} does not hold lora_A and lora_B of every layer; save it again with peft."
        )
    return settings["r"], settings["lora_alpha"], {n: (found["lora_A"], found["lora_B"]) for n, found in halves.items()}


@torch.no_grad()
def start_from(folder: Path, config: LoraConfig, adapters: dict[str, LoraLinear]) -> None:
    """Fill a network's adapters with those of a folder, which must have the recipe's rank, alpha and layers."""
    rank, alpha, factors = read_adapter(folder)
    if (rank, alpha) != (config.rank, config.alpha):
        raise RecipeError(
            f"The adapter {folder} has rank {rank} and alpha {alpha:g}, the recipe {config.rank} and {config.alpha:g}; "
            "give lora the adapter's."
        )
    for name, (a, b) in factors.items():
        layer = adapters.get(name)
        if layer is None:
            raise RecipeError(f"The adapter {folder} has the layer {name}, which lora.targets leaves out; widen it.")
        for ours, theirs in ((layer.lora_A.weight, a), (layer.lora_B.weight, b)):
            if ours.shape != theirs.shape:
                raise RecipeError(
                    f"The adapter {folder} has {list(theirs.shape)} numbers for {name} where the checkpoint needs "
                    f"{list(ours.shape)}; it belongs to another model."
                )
            ours.copy_(share_of(theirs.float(), ours))
