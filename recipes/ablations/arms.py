"""The arms of the study: what each changes of the same settings, all as the trainer's own configuration.

It knows recipes as data, and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from training.recipe import Recipe, recipe_from_dict

BASE_SEED = 1
RATIOS = (None, 2, 4, 8, 16)  # that every arm is judged at
CURRICULUM = [
    {"ratios": ["raw", 2], "share": 1},
    {"ratios": ["raw", 2, 4], "share": 1},
    {"ratios": ["raw", 2, 4, 8], "share": 1},
    {"ratios": ["raw", 2, 4, 8, 16], "share": 2},
]
SST = {"interval": 32, "ratios": [2, 4, 8, 16], "default_ratio": 8}
DECODER = r"decoder\.layers"
COMMON = {
    "batch": 8,
    "max_tokens": 256,
    "questions": 8,
    "log_every": 50,
    "validate_every": 150,
    "validation_recordings": 16,
    "learning_rates": {".": 2e-3},
}


@dataclass(frozen=True)
class Steps:
    """How long the stages are; the same for all arms."""

    base: int = 2000  # text and its questions, without compression
    memory: int = 500  # SSTs
    alignment: int = 300  # the adapter's stages: an arm without alignment answers for as much longer
    answering: int = 300


@dataclass(frozen=True)
class Arm:
    """One way to train. `sst` and `memory` are what it changes of `SST` and of the stage that trains SSTs."""

    name: str
    claim: str  # what it is compared on
    sst: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    alignment: bool | None = None  # of arms about the adapter: whether it is aligned first


REFERENCE = Arm("reference", "curriculum, a ratio for each interval, interleaved, own projections, intervals of 32")
TEXT_ARMS = (
    REFERENCE,
    Arm("direct 16", "ratio 16 alone, from the first step", memory={"lessons": [{"ratios": [16]}]}),
    Arm("no curriculum", "all ratios, from the first step", memory={"lessons": [CURRICULUM[-1]]}),
    Arm("per recording", "one ratio drawn for a whole recording", memory={"uniform": 1.0}),
    Arm("appended", "SSTs behind their whole interval", sst={"appended": True}),
    Arm("shared projections", "SSTs go through the decoder's own projections", sst={"own_projections": False}),
    Arm("SSTs alone", "the decoder stays as it is", memory={"train": ["sst_"]}),
    Arm(
        "SSTs alone, shared",
        "the decoder stays as it is, and only the SST's embedding learns",
        sst={"own_projections": False},
        memory={"train": ["sst_"]},
    ),
    Arm("interval 16", "intervals of 16 speech tokens", sst={"interval": 16}),
    Arm("interval 64", "intervals of 64 speech tokens", sst={"interval": 64}),
    Arm("horizon 0", "an interval is heard without the memory of those before it", sst={"horizon": 0}),
)
ALIGNED = Arm("aligned", "the adapter learns the words by CTC first", alignment=True)
SPEECH_ARMS = (ALIGNED, Arm("not aligned", "the adapter learns from answers alone, for as many steps", alignment=False))


def base_recipe(steps: Steps) -> Recipe:
    """The decoder that all arms and seeds start from: it reads text and answers, nothing is compressed."""
    stage = {
        "name": "base",
        "kind": "answering",
        "steps": steps.base,
        "train": ["decoder"],
        "transcripts": 0.5,
        "warmup": 30,
    }
    return recipe_from_dict({"seed": BASE_SEED, "stages": [COMMON | stage | {"learning_rates": {".": 3e-3}}]})


def arm_recipe(arm: Arm, steps: Steps, seed: int) -> Recipe:
    """The stages that an arm trains, as the trainer takes them."""
    stages = []
    if arm.alignment is not None:
        answering = steps.answering if arm.alignment else steps.alignment + steps.answering
        if arm.alignment:
            stages.append({"name": "alignment", "kind": "alignment", "loss": "ctc", "steps": steps.alignment})
        trained = {"train": [r"speech\.adapter", DECODER]}
        stages.append({"name": "answers", "kind": "answering", "steps": answering} | trained)
    memory = {"name": "memory", "kind": "summarization", "steps": steps.memory, "train": ["sst_", DECODER]}
    stages.append(memory | {"lessons": CURRICULUM, "transcripts": 0.5} | arm.memory)
    return recipe_from_dict({"seed": seed, "sst": SST | arm.sst, "stages": [COMMON | stage for stage in stages]})
