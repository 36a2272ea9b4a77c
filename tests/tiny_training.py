"""What the tests of training share: a tiny checkpoint that hears words, JSON lines, recipes, a run of the command."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.tiny import save_checkpoint, tiny_recognizer_config
from training.recipe import recipe_from_dict
from training.runner import Runner

SST = {"interval": 8, "ratios": [2, 4, 8], "default_ratio": 4, "horizon": 0, "pooled": True}
STAGE = {
    "name": "first",
    "kind": "summarization",
    "steps": 6,
    "batch": 2,
    "warmup": 1,
    "log_every": 1,
    "validate_every": 3,
    "learning_rates": {"sst_pool": 0.02, ".": 0.01},
    "lora": {"rank": 4, "alpha": 8},
    "lessons": [{"ratios": ["raw", 2]}, {"ratios": ["raw", 2, 4]}],
    "max_tokens": 40,
}
TALKS = [
    {"heard": "a b c d e f g h a c e g", "question": "what drink is order 47?", "answer": "a b"},
    {"heard": "a b c d e f g h a c e g", "question": "what is it?", "answer": "not mentioned", "kind": "absent"},
    {"heard": "h g f e d c b a"},
    {"heard": " ".join("abcdefgh" * 8)},
    {"heard": "b d f h", "question": "what drink?", "answer": "d"},
]


def hearing_checkpoint(folder: Path, **changes: Any) -> Path:
    """A tiny checkpoint that hears words, with `changes` of its configuration."""
    return save_checkpoint(folder, tiny_recognizer_config(**changes))


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def recipe(*stages: dict[str, Any], **top: Any) -> Any:
    """A checked recipe of `STAGE` with changes, one stage for each dict."""
    return recipe_from_dict({"seed": 3, "sst": SST, "stages": [STAGE | s for s in stages or ({},)]} | top)


def train(model: Path, output: Path, chosen: Any, data: Path, validation: Path | None = None) -> Path:
    """Run all stages; returns the folder of the model."""
    assert Runner(chosen, [data], validation, output).run(model)
    return output / "model"


def tensors(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def metrics(output: Path, stage: str = "first") -> dict[str, dict[int, float]]:
    """metric -> step -> value of a run's only folder of that stage."""
    (path,) = (output / "stages").glob(f"{stage}-*/metrics.csv")
    found: dict[str, dict[int, float]] = {}
    for row in path.read_text(encoding="utf-8").splitlines()[1:]:
        step, name, value = row.split(",")
        found.setdefault(name, {})[int(step)] = float(value)
    return found
