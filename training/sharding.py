"""One network over several processes, each of which holds a share of every tensor (FSDP2, arXiv 2304.11277).

What is sharded how comes from accelerate's configuration file; torch does the sharding, on GPUs and CPUs alike. It knows
networks and process groups, no data and no recipe.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from training.recipe import RecipeError


def sharding_settings() -> FullyShardedDataParallelPlugin | None:
    """What `accelerate launch --config_file` asks for; None where every process holds the whole network."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or not dist.is_initialized():
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError(
            "The launch configuration has FSDP's version 1; set fsdp_version: 2, as recipes/fsdp_7b.yaml does."
        )
    return FullyShardedDataParallelPlugin()


def shard(network: nn.Module, settings: FullyShardedDataParallelPlugin, device: torch.device) -> None:
    """Leave each process its share of `network`, whose tensors count on the first process only.

    Modules of the classes that the settings name are gathered one at a time, in float32: what multiplies in bfloat16 is
    autocast's business, as where every process holds the whole network.
    """
    weights = network.state_dict() if dist.get_rank() == 0 else {}
    network.to("meta")
    how: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (dist.get_world_size(),)),
        "offload_policy": settings.cpu_offload,
    }
    names = settings.transformer_cls_names_to_wrap or []
    known = {type(module).__name__ for module in network.modules()}
    if not known & set(names):
        raise RecipeError(
            f"The launch configuration shards {', '.join(names) or 'no class'}, which this network does not have; "
            "set fsdp_transformer_layer_cls_to_wrap: DecoderLayer,EncoderLayer."
        )
    for module in list(network.modules()):
        if type(module).__name__ in names:
            fully_shard(module, reshard_after_forward=settings.reshard_after_forward, **how)
            if hasattr(module, "whole"):
                register_fsdp_forward_method(module, "whole")
    fully_shard(network, **how)
    network.to_empty(device="cpu" if isinstance(settings.cpu_offload, CPUOffloadPolicy) else device)
    set_model_state_dict(network, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, on every process; to be called by all of them."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor as this process holds it: all of it, or sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
