"""Optimizers, learning rate, metrics and the resumable state of one training stage.

A stage can be killed at any moment: its state is written to a temporary name and renamed, and every
step's data are a function of (seed, step), so the resumed run goes on as if nothing had happened.
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_backend.training.muon import Muon


def optimizers(parameters: dict[str, nn.Parameter], lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices (orthogonalised momentum), AdamW for everything else."""
    trainable = {n: p for n, p in parameters.items() if p.requires_grad}
    matrices = [p for n, p in trainable.items() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in trainable.items() if p.dim() != 2 or "embed" in n]
    built: list[torch.optim.Optimizer] = []
    if matrices:
        built.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
    if others:
        built.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0))
    return built


def set_learning_rate(built: list[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in built:
        for group in optimizer.param_groups:
            group["lr"] = lr


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Linear warm-up, plateau, linear decay to 2 % over the last `decay` share of the stage."""
    start = steps * (1 - decay)
    down = 1.0 if step < start else max(0.02, (steps - step) / max(1.0, steps - start))
    return peak * min(1.0, (step + 1) / max(1, warmup)) * down


class Run:
    """One stage's folder: state.pt while it runs, done.pt (weights only) when it is complete, metrics.csv."""

    def __init__(self, folder: Path, save_every_seconds: float):
        self.folder = folder
        self.save_every_seconds = save_every_seconds
        self._saved_at = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def done_path(self) -> Path:
        return self.folder / "done.pt"

    def write(self, path: Path, payload: Any) -> None:
        temporary = path.with_suffix(".part")
        torch.save(payload, temporary)
        os.replace(temporary, path)

    def save_if_due(self, step: int, model: nn.Module, built: list[torch.optim.Optimizer]) -> None:
        if time.monotonic() - self._saved_at < self.save_every_seconds:
            return
        self._saved_at = time.monotonic()
        payload = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in built]}
        self.write(self.folder / "state.pt", payload)

    def resume(self, model: nn.Module, built: list[torch.optim.Optimizer]) -> int:
        """Load the last state, if there is one; returns the number of steps already done."""
        path = self.folder / "state.pt"
        if not path.exists():
            return 0
        payload = torch.load(path, weights_only=True)
        model.load_state_dict(payload["model"])
        for optimizer, state in zip(built, payload["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return payload["step"]

    def finish(self, model: nn.Module) -> None:
        self.write(self.done_path, model.state_dict())
        (self.folder / "state.pt").unlink(missing_ok=True)

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.csv and print it."""
        path = self.folder / "metrics.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=["stage", "phase", "step", "metric", "value"])
            if fresh:
                writer.writeheader()
            head = {k: row.pop(k) for k in ("stage", "phase", "step")}
            writer.writerows(head | {"metric": k, "value": v} for k, v in row.items())
        shown = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
        print(f"[{time.strftime('%H:%M:%S')}] {head['stage']}/{head['phase']} step {head['step']}: {shown}", flush=True)
