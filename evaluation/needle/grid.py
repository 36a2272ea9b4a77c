"""Which recordings the grid is made of: every needle at every depth of every length, in the same speech.

The same needle has the same speech around it at every depth, so that only its place differs. It knows files and
seconds; no model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from evaluation.data import Data, DataError, Item, read_data
from evaluation.needle.recording import PAUSE, NeedleRecording, read_needle
from speech_xl.audio import file_sha256, probe
from speech_xl.clock import clock
from speech_xl.config import SAMPLING_RATE
from speech_xl.decoders import AUDIO_SUFFIXES, VIDEO_SUFFIXES

SUFFIXES = frozenset(f".{suffix}" for suffix in f"{AUDIO_SUFFIXES} {VIDEO_SUFFIXES}".split())
SEED = 0  # of the order in which speech is played


@dataclass(frozen=True)
class Grid:
    """`data` holds an item for each needle, length and depth; `cells` tells which ids stand in which cell.

    `speech_seconds`: of different speech, as far as the longest recording needs it.
    """

    data: Data
    lengths: tuple[float, ...]  # seconds
    depths: tuple[float, ...]  # percent
    cells: dict[tuple[float, float], list[str]]  # (length, depth) -> ids, one a needle
    speech_seconds: float


def make_grid(needles: Path, folder: Path, lengths: Sequence[float], depths: Sequence[float]) -> Grid:
    """DataError for needles, a folder, a length or a depth that no grid can be made of."""
    for depth in depths:
        if not 0 <= depth <= 100:
            raise DataError(f"{depth:g} is no depth; give percent, from 0 to 100.")
    lengths, depths = tuple(sorted(set(lengths))), tuple(sorted(set(depths)))
    asked = read_data(needles)
    if any(item.question is None for item in asked.items):
        raise DataError(f"{needles} has a line without a question; a needle is a recording, a question and its answer.")
    sounds = {item.id: Path(str(item.audio)) for item in asked.items}
    files = _speech_files(folder, {sound.resolve() for sound in sounds.values()})
    of_speech = _sha256([SEED, PAUSE, [[path.relative_to(folder).as_posix(), os.path.getsize(path)] for path in files]])
    items: list[Item] = []
    cells: dict[tuple[float, float], list[str]] = {(length, depth): [] for length in lengths for depth in depths}
    declared = cache(_declared_seconds)
    longest = 0.0
    for number, needles_of_sound in enumerate(asked.recordings().values()):
        order = np.random.default_rng([SEED, number]).permutation(len(files))
        speech = {length: _enough([files[i] for i in order], length, declared) for length in lengths}
        longest = max(longest, sum(map(declared, speech[lengths[-1]])))
        sound = sounds[needles_of_sound[0].id]
        around = f"{number} {file_sha256(sound)} {of_speech}"
        samples = len(read_needle(sound))
        for needle in needles_of_sound:
            for length, depth in cells:
                item = _item(needle, sound, samples, speech[length], length, depth)
                items.append(dataclasses.replace(item, line=_sha256(f"{needle.line} {around}")))
                cells[length, depth].append(items[-1].id)
    return Grid(Data(tuple(items), frozenset(item.line for item in items)), lengths, depths, cells, longest)


def _item(needle: Item, sound: Path, samples: int, speech: tuple[Path, ...], length: float, depth: float) -> Item:
    """The needle's question about a recording of `length` seconds with it at `depth` percent."""
    total = round(length * SAMPLING_RATE)
    room = total - samples - 2 * PAUSE
    if room < 0:
        raise DataError(
            f"A recording of {length:g} s has no room for {sound.name}; give a length of at least "
            f"{(samples + 2 * PAUSE) / SAMPLING_RATE:.1f} s."
        )
    start = PAUSE + round(room * depth / 100)
    where = f"at {depth:g} % of {length:g} s"
    recording = NeedleRecording(f"{sound.name} {where}", speech, sound, start, total)
    first = start / SAMPLING_RATE
    inner = needle.span or (0.0, samples / SAMPLING_RATE)
    span = (first + inner[0], first + inner[1])
    return dataclasses.replace(needle, id=f"{needle.id} {where}", audio=recording, kind=clock(length), span=span)


def _speech_files(folder: Path, needles: set[Path]) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name one with recordings of other speech.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    files = [path for path in files if path.resolve() not in needles]
    if not files:
        raise DataError(f"{folder} has no recordings other than the needles; name a folder with other speech.")
    return files


def _declared_seconds(path: Path) -> float:
    return probe(path).seconds or 0.0


def _enough(files: Sequence[Path], seconds: float, declared: Callable[[Path], float]) -> tuple[Path, ...]:
    """The first files that hold that many seconds, or all of them; so a recording is the same in every grid."""
    chosen: list[Path] = []
    total = 0.0
    for path in files:
        if total >= seconds:
            break
        chosen.append(path)
        total += declared(path)
    return tuple(chosen)


def _sha256(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
