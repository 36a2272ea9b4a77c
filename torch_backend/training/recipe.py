"""A training recipe: the JSON file that says which model is trained, on what, in which stages.

It knows fields and their checks, no tensors and no audio.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from speech_xl.config import ModelConfig, from_dict
from speech_xl.errors import SpeechXLError
from torch_backend.training.alignment import AlignmentPhase, AlignmentStage
from torch_backend.training.answering import AnsweringStage, Phase
from torch_backend.training.encoded import EncodingPlan
from torch_backend.training.text import ANSWER, BEGIN, END

DESCRIPTION = (
    "Understands one thing: order-desk recordings, in which a number is spoken as two digits and a coffee order "
    "follows. Ask it for a numbered order's drink, size, shots, roast, milk or sweetener, or for its words."
)


class RecipeError(SpeechXLError):
    """A recipe that cannot be followed."""


@dataclass(frozen=True)
class Recipe:
    seed: int
    save_every_seconds: float
    vocab_size: int
    synthetic: dict[str, int]  # {"orders", "digits", "seed"} of the text-to-speech corpus
    validation_voice: str  # the digit speaker that is never trained on
    encodings: dict[str, EncodingPlan]  # what an answering stage's `clips` may name, beside "pseudo"
    model: ModelConfig
    stages: tuple[AlignmentStage | AnsweringStage, ...]

    def stage(self, name: str) -> AlignmentStage | AnsweringStage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise RecipeError(f"The recipe has no stage {name!r}; it has {', '.join(s.name for s in self.stages)}.")


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise RecipeError(f"The recipe's {where} has unknown fields {', '.join(unknown)}; known are {sorted(known)}.")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise RecipeError(f"The recipe's {where} is incomplete: {error}.") from None


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; RecipeError says which part is wrong."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"The recipe {path} cannot be read ({error}).") from None
    stages = []
    for values in data.pop("stages"):
        kind = values.pop("kind")
        stage_type, phase_type = {
            "alignment": (AlignmentStage, AlignmentPhase), "answering": (AnsweringStage, Phase)
        }[kind]  # fmt: skip
        phases = tuple(_build(phase_type, p, f"phase {p.get('name')!r}") for p in values.pop("phases"))
        stages.append(_build(stage_type, values | {"phases": phases}, f"stage {values.get('name')!r}"))
    data["encodings"] = {
        name: _build(EncodingPlan, plan, f"encoding {name!r}") for name, plan in data.get("encodings", {}).items()
    }
    model = data.pop("model")
    model["decoder"]["vocab_size"] = data["vocab_size"]
    model["prompt"] = {
        "before_audio": BEGIN, "after_audio": "{question}" + ANSWER, "end_tokens": [END]
    }  # fmt: skip
    model["description"] = DESCRIPTION
    return _build(Recipe, data | {"model": from_dict(model), "stages": tuple(stages)}, "top level")
