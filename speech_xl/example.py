"""The recording that is shipped as an example, and which questions to offer about it. It knows files, no sound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from speech_xl.config import ModelConfig

EXAMPLE = Path(__file__).resolve().parent.parent / "space" / "examples" / "town_meeting.ogg"


@dataclass(frozen=True)
class Example:
    """The shipped recording's title and questions."""

    title: str
    suggestions: tuple[str, ...]  # questions that the recording answers


def load_example(path: Path = EXAMPLE) -> Example:
    """What the JSON file beside the recording says about it."""
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return Example(about["title"], tuple(about["suggestions"]))


def suggested_questions(config: ModelConfig, path: Path = EXAMPLE) -> tuple[str, ...]:
    """The model's own, where it understands one kind of recording only; else those about the example."""
    return config.suggestions or load_example(path).suggestions
