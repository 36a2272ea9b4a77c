"""What every benchmark is to the evaluation: a reader of its folder, and a scorer of what was said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.data import Item, Line
from speech_xl.errors import SpeechXLError


class BenchmarkError(SpeechXLError):
    """A folder that is no copy of the benchmark, or of a version with another layout."""


class Answered(NamedTuple):
    """What was asked, the fields of its line, the reader's own among them, and what a model said."""

    item: Item
    fields: dict[str, Any]
    said: str

    @property
    def right(self) -> str:
        """What would have been right: the item's answer, or its text."""
        return self.item.answer or self.item.text or ""


class Scores(NamedTuple):
    """The benchmark's table of one model: percent by column, None where this run cannot tell; a sentence a note."""

    figures: dict[str, float | None]
    notes: list[str]


@dataclass(frozen=True)
class Benchmark:
    """`read` gives lines whose recordings are relative to the folder, each with an id and a kind.

    `sizes`: entries of each kind in the public version, or of "all" where it does not count kinds.
    """

    title: str
    paper: str
    sizes: dict[str, int]
    read: Callable[[Path], list[Line]]
    score: Callable[[Sequence[Answered]], Scores]
