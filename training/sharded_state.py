"""A stage's state in shards: every process writes what it holds, and any number of processes reads it back.

The files are torch.distributed.checkpoint's. A state gets its name when it is whole, so that a kill leaves the one before.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.optim import Optimizer

from speech_xl.errors import OutputError
from training.sharding import share_of
from training.state import StageFolder

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's


def save_shards(
    folder: StageFolder, step: int, elapsed: float, trained: dict[str, nn.Parameter], optimizer: Optimizer
) -> None:
    """Write `folder`/state-STEP and drop older ones; all processes call this together. OutputError if one of them cannot."""
    temporary = folder.path / "shards.partial"
    is_main = dist.get_rank() == 0
    if is_main:
        shutil.rmtree(temporary, ignore_errors=True)
    dist.barrier()
    moments = {name: optimizer.state[p] for name, p in trained.items() if p in optimizer.state}
    state = {
        "step": step,
        "elapsed": elapsed,
        "parameters": {n: p.detach() for n, p in trained.items()},
        "moments": moments,
    }
    try:
        dcp.save(state, checkpoint_id=temporary)
    except dcp.CheckpointException as error:  # raised in all of them: what each that failed says
        reason = next(iter(error.failures.values()))[0]
        raise OutputError(
            f"{temporary} cannot be written ({reason}); make room and run the same command again."
        ) from error
    if is_main:
        older = folder.shards()
        os.replace(temporary, folder.path / f"state-{step}")
        (folder.path / "state.pt").unlink(missing_ok=True)
        for path in older:
            shutil.rmtree(path)
    folder.was_saved()
    dist.barrier()


@torch.no_grad()
def load_state(folder: StageFolder, trained: dict[str, nn.Parameter], optimizer: Optimizer) -> tuple[int, float] | None:
    """Fill parameters and optimizer from the newest state, whole or in shards -> (step, seconds); None: there is none."""
    if shards := folder.shards():
        return _load_shards(shards[-1], trained, optimizer)
    state = folder.load()
    if state is None:
        return None
    for name, parameter in trained.items():
        parameter.copy_(share_of(state["parameters"][name], parameter))
    order = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in state["optimizer"]["state"].items():
        parameter = order[index]
        for key, value in moments.items():
            moments[key] = share_of(value, parameter) if value.shape == parameter.shape else value
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["elapsed"]


def _load_shards(path: Any, trained: dict[str, nn.Parameter], optimizer: Optimizer) -> tuple[int, float]:
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    moments = {
        name: {
            key: torch.zeros(()) if key == "step" else torch.zeros_like(parameter)
            for key in MOMENTS
            if f"moments.{name}.{key}" in stored
        }
        for name, parameter in trained.items()
    }
    moments = {name: found for name, found in moments.items() if found}
    state: dict[str, Any] = {
        "step": 0,
        "elapsed": 0.0,
        "parameters": {n: p.detach() for n, p in trained.items()},
        "moments": moments,
    }
    dcp.load(state, checkpoint_id=path)
    for name, found in moments.items():
        optimizer.state[trained[name]] = found
    return state["step"], state["elapsed"]
