"""A training recipe: the JSON file that says in which stages a checkpoint is trained, and how.

It knows fields and their checks, no tensors and no data. Fields that a recipe leaves out have the values below.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech_xl.config import SSTConfig
from speech_xl.errors import SpeechXLError
from speech_xl.schedule import Ratio

PRECISIONS = ("float32", "mixed")
KINDS = ("alignment", "recognition", "answering", "summarization")
LOSSES = ("next_token", "ctc")
PROJECTIONS = r"decoder\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


class RecipeError(SpeechXLError):
    """A recipe that cannot be followed."""


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) by peft's conventions: the update is B A x * alpha / rank."""

    rank: int = 32
    alpha: float = 64.0
    targets: str = PROJECTIONS  # regular expression for the whole name of a linear layer
    start: str | None = None  # a folder of peft's to start from; None: A is drawn and B is zero


@dataclass(frozen=True)
class Lesson:
    """One part of a stage: the ratios that intervals draw from, and its share of the stage's steps."""

    ratios: tuple[Ratio, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One stage. A step trains on `batch` recordings, whatever the number of processes and of accumulated passes."""

    name: str
    kind: str  # one of KINDS
    steps: int
    minutes: float | None = None  # of steps, validation not counted: a stop, which learning rate and lessons follow
    batch: int = 4
    accumulation: int = 1  # passes that a process splits its share of a batch into
    pack: int | None = None  # rows (speech tokens, SSTs and text) of a pass at most: as many passes as that takes
    max_tokens: int = 512  # speech tokens of the longest recording; a longer transcript is cut, a longer one with
    # questions is left out
    train: tuple[str, ...] = ()  # regular expressions that find the names of tensors to train; () is the kind's own
    learning_rates: dict[str, float] = dataclasses.field(default_factory=lambda: {"sst_pool": 5e-3, ".": 1e-3})
    # pattern -> peak; the first that finds a tensor's name counts
    lora: LoraConfig | None = None
    lessons: tuple[Lesson, ...] = (Lesson((None,)),)
    uniform: float = 0.0  # share of recordings that keep one ratio throughout
    loss: str = "next_token"  # one of LOSSES; "ctc" compares speech tokens with a transcript and runs no decoder
    ctc_classes: int = 1000  # tokens drawn at random beside those that are said
    prompted: float = (
        0.5  # of a recognition stage: share of the windows that are read behind the words of the line before
    )
    augment: float = 0.0  # strength, 0 to 1, of what is done to sound before it is heard, anew at every step
    questions: int = 8  # at most so many of a recording's questions in a step
    transcripts: float = 0.5  # share of a recording's intervals whose words are asked for
    asked: tuple[
        Ratio, ...
    ] = ()  # for checkpoints that recall: only recordings that keep one of these ratios are asked
    # questions, read as one interval, as recalled words are; of the others the words of all intervals are asked for
    shift: int = 0  # up to so many positions are left out before a recording: late positions are practised early
    warmup: int = 20  # steps
    decay: float = 0.3  # the last share of the stage, in which the learning rate falls to a fiftieth
    weight_decay: float = 0.0
    clip: float = 1.0  # norm of the gradient
    gradient_checkpointing: bool = False
    log_every: int = 10  # steps
    validate_every: int = 50  # steps
    validation_recordings: int = 24

    @property
    def patterns(self) -> tuple[str, ...]:
        """Which tensors train: those named, or the kind's own."""
        own = {
            "alignment": (r"speech\.adapter",),
            "recognition": ("lora_",) if self.lora else (r"speech\.recognizer",),
            "answering": (r"speech\.adapter", "lora_"),
            "summarization": ("sst_", "lora_"),
        }
        return self.train or tuple(p for p in own[self.kind] if p != "lora_" or self.lora)

    @property
    def trains_encoder(self) -> bool:
        """Whether the patterns reach into the encoder, so that its outputs cannot be cached."""
        return any(re.search(p, "speech.encoder.layers.0.fc1.weight") for p in self.patterns)

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Every ratio of the stage, in order of first use."""
        return tuple(dict.fromkeys(r for lesson in self.lessons for r in lesson.ratios))

    def lesson(self, progress: float) -> Lesson:
        """The lesson at `progress` (0 to 1) through the stage."""
        reached, whole = 0.0, sum(lesson.share for lesson in self.lessons)
        for lesson in self.lessons:
            reached += lesson.share / whole
            if progress < reached:
                return lesson
        return self.lessons[-1]

    def learning_rate(self, step: int, progress: float) -> float:
        """Factor on the peak: linear warm-up, plateau, linear decay to a fiftieth."""
        down = min(1.0, max(0.02, (1 - progress) / max(self.decay, 1e-9)))
        return min(1.0, (step + 1) / max(1, self.warmup)) * down


@dataclass(frozen=True)
class Recipe:
    """The stages of a training and what they share."""

    stages: tuple[Stage, ...]
    seed: int = 1
    save_minutes: float = 5.0
    sst: SSTConfig | None = None  # fresh SST parameters instead of the checkpoint's
    precision: str | None = None  # one of PRECISIONS; None: "mixed" on CUDA, else "float32", which repeats everywhere


DEFAULT = Recipe(
    (
        Stage(
            "summarization",
            "summarization",
            1500,
            lora=LoraConfig(),
            lessons=(Lesson((None, 2)), Lesson((None, 2, 4)), Lesson((None, 2, 4, 8))),
        ),
    )
)


def load_recipe(path: Path | None) -> Recipe:
    """Read and check a recipe; None is the built-in one. RecipeError says which part is wrong."""
    if path is None:
        return DEFAULT
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"The recipe {path} cannot be read ({error}); name a JSON file.") from None
    return recipe_from_dict(data)


def recipe_from_dict(data: Any) -> Recipe:
    """Build a checked Recipe from parsed JSON."""
    top = _fields(data, "top level")
    stages = top.get("stages")
    if not isinstance(stages, list) or not stages:
        raise RecipeError("The recipe has no stages; give a list of at least one.")
    top["stages"] = tuple(_stage(_fields(s, f"stage {i + 1}")) for i, s in enumerate(stages))
    names = [s.name for s in top["stages"]]
    if len(set(names)) < len(names):
        raise RecipeError(f"The recipe's stages need names of their own, not {', '.join(names)}.")
    if top.get("sst") is not None:
        top["sst"] = _build(SSTConfig, _fields(top["sst"], "sst"), "sst")
        top["sst"] = dataclasses.replace(top["sst"], trained=False)
        _check_sst(top["sst"])
    if top.get("precision") not in (None, *PRECISIONS):
        raise RecipeError(f"The recipe's precision must be one of {', '.join(PRECISIONS)}, not {top['precision']!r}.")
    return _build(Recipe, top, "top level")


def settings_of(stage: Stage) -> dict[str, Any]:
    """The fields of a stage that say something else than the values above: what a fingerprint is taken of."""
    values = dataclasses.asdict(stage)
    defaults = {f.name: getattr(Stage(stage.name, stage.kind, stage.steps), f.name) for f in dataclasses.fields(Stage)}
    named = ("name", "kind", "steps")
    if stage.lora is not None and stage.lora.start is None:
        del values["lora"]["start"]
    return {n: v for n, v in values.items() if n in named or getattr(stage, n) != defaults[n]}


def _fields(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise RecipeError(f"The recipe's {where} must be a JSON object.")
    return dict(values)


def _stage(values: dict[str, Any]) -> Stage:
    where = f"stage {values.get('name')!r}"
    if values.get("lora") is not None:
        values["lora"] = _build(LoraConfig, _fields(values["lora"], f"{where}, lora,"), f"{where}, lora,")
    if "lessons" in values:
        lessons = [_fields(lesson, f"{where}, lessons,") for lesson in values["lessons"]]
        for lesson in lessons:
            lesson["ratios"] = [None if r == "raw" else r for r in lesson.get("ratios", [])]
        values["lessons"] = [_build(Lesson, lesson, f"{where}, lessons,") for lesson in lessons]
    if "asked" in values:
        values["asked"] = [None if r == "raw" else r for r in values["asked"]]
    stage = _build(Stage, values, where)
    _check_stage(stage, where)
    return stage


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise RecipeError(
            f"The recipe's {where} has unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise RecipeError(f"The recipe's {where} is incomplete ({error}).") from None


def _check_stage(s: Stage, where: str) -> None:
    def require(holds: bool, sentence: str) -> None:
        if not holds:
            raise RecipeError(f"The recipe's {where}: {sentence}.")

    def is_number(value: Any, least: float) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= least

    require(isinstance(s.name, str) and re.fullmatch(r"[\w.-]+", s.name) is not None, "the name must be one plain word")
    require(s.loss in LOSSES, f"loss must be one of {', '.join(LOSSES)}, not {s.loss!r}")
    require(s.loss == "next_token" or s.kind == "alignment", "only an alignment stage has the loss ctc")
    require(s.kind in KINDS, f"kind must be one of {', '.join(KINDS)}, not {s.kind!r}")
    for f in dataclasses.fields(Stage):
        value = getattr(s, f.name)
        if f.type == "int":
            least = 0 if f.name in ("questions", "shift", "warmup") else 1
            require(
                type(value) is int and value >= least, f"{f.name} must be a whole number from {least}, not {value!r}"
            )
        if f.type == "float":
            require(is_number(value, 0), f"{f.name} must be a number from 0, not {value!r}")
    require(s.minutes is None or is_number(s.minutes, 1e-9), f"minutes must be a positive number, not {s.minutes!r}")
    require(s.accumulation <= s.batch, f"accumulation {s.accumulation} is more than the batch of {s.batch}")
    require(
        s.pack is None or (type(s.pack) is int and s.pack >= 1), f"pack must be a whole number from 1, not {s.pack!r}"
    )
    require(s.pack is None or s.accumulation == 1, "pack says how many passes there are, so leave accumulation out")
    rates = s.learning_rates
    require(
        isinstance(rates, dict) and all(is_number(v, 0) for v in rates.values()),
        "learning_rates must be {pattern: number}",
    )
    for pattern in (*s.train, *rates, *([s.lora.targets] if s.lora else [])):
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            require(False, f"{pattern!r} is no regular expression ({error})")
    require(
        s.lora is None or (type(s.lora.rank) is int and s.lora.rank >= 1), "lora.rank must be a whole number from 1"
    )
    require(
        s.lora is None or s.lora.start is None or isinstance(s.lora.start, str), "lora.start must be a folder's name"
    )
    require(bool(s.lessons) and all(lesson.ratios for lesson in s.lessons), "every lesson needs ratios")
    for ratio in (*s.ratios, *s.asked):
        require(
            ratio is None or (type(ratio) is int and ratio >= 1), f'ratio {ratio!r} must be "raw" or a whole number'
        )


def _check_sst(sst: SSTConfig) -> None:
    if not sst.ratios or any(type(r) is not int or r < 1 or sst.interval % r for r in sst.ratios):
        raise RecipeError(f"The recipe's sst.ratios must be whole numbers that divide the interval of {sst.interval}.")
    if sst.default_ratio not in sst.ratios:
        raise RecipeError("The recipe's sst.default_ratio must be one of sst.ratios.")
