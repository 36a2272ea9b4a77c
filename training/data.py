"""JSON lines in, recordings with their questions out.

A line names a recording and what is known of it. {"audio", "start"?, "end"?} is a sound file or a part of it, in
seconds; {"heard"} is the words as a recogniser wrote them, for checkpoints that have one. "text" is what was said,
"question" and "answer" belong together, "kind" is a name under which the question's figures are reported. Other
fields are left alone. Consecutive lines of the same recording are one recording with several questions.

Files are read as a stream: a recording is parsed when it is wanted, and what stays of it is where its lines are.
It knows no tokens and no tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

from speech_xl.audio import file_sha256
from speech_xl.errors import RecordingError, SpeechXLError


class DataError(SpeechXLError):
    """A file of JSON lines that cannot be trained on."""


@dataclass(frozen=True)
class Question:
    """A question about a recording, or the order to transcribe it."""

    text: str
    answer: str
    kind: str = "question"


@dataclass(frozen=True)
class Recording:
    """Exactly one of `heard` and `audio` is set."""

    where: str  # file and line, for messages
    heard: str | None = None
    audio: Path | None = None
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: the file's end
    text: str | None = None  # what was said
    questions: tuple[Question, ...] = ()

    @property
    def key(self) -> tuple[Any, ...]:
        """What lines of the same recording share."""
        return self.heard, self.audio, self.start, self.end


class Place(NamedTuple):
    """Where a recording's lines are: bytes [offset, offset + length) of file number `file`, from line number `line` on."""

    file: int
    offset: int
    length: int
    line: int


def scan_recordings(paths: Sequence[Path]) -> Iterator[tuple[Recording, Place]]:
    """The recordings of some files in order, one at a time; DataError names the file and the line of what is wrong."""
    for number, path in enumerate(paths):
        last: tuple[Recording, Place] | None = None
        for one, place in _lines(Path(path), number):
            if last is not None and last[0].key == one.key:
                last = joined(last[0], one), last[1]._replace(length=place.offset + place.length - last[1].offset)
                continue
            if last is not None:
                yield last
            last = one, place
        if last is None:
            raise DataError(f"{path} has no lines; give at least one JSON object.")
        yield last


def recording_at(paths: Sequence[Path], place: Place) -> Recording:
    """The recording that `scan_recordings` found at a place."""
    path = Path(paths[place.file])
    try:
        with open(path, "rb") as file:
            file.seek(place.offset)
            lines = file.read(place.length).splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); leave the data alone while it is trained on."
        ) from None
    found = [
        _recording(line, f"{path}, line {place.line + i}", path.parent) for i, line in enumerate(lines) if line.strip()
    ]
    if not found:
        raise DataError(f"{path} has changed since the training began; leave the data alone while it is trained on.")
    return reduce(joined, found)


def joined(first: Recording, more: Recording) -> Recording:
    """Two lines of one recording."""
    return replace(first, text=first.text or more.text, questions=first.questions + more.questions)


def read_recordings(paths: Sequence[Path]) -> list[Recording]:
    """All recordings of some files, for whoever has few of them."""
    return [recording for recording, _ in scan_recordings(paths)]


def hash_files(paths: Iterable[Path]) -> list[str]:
    """SHA-256 of each file's bytes."""
    hashes = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines.") from None
    return hashes


def sound_hash(recording: Recording) -> str:
    """SHA-256 of the bytes of a recording's file, which is read once; DataError names the line if it cannot be."""
    try:
        return _file_hash(recording.audio)
    except RecordingError as error:
        raise DataError(f"{recording.where}: {error}") from None


_file_hash = lru_cache(maxsize=2**16)(file_sha256)


def _lines(path: Path, number: int) -> Iterator[tuple[Recording, Place]]:
    offset = 0
    try:
        with open(path, "rb") as file:
            for count, line in enumerate(file, 1):
                if line.strip():
                    place = Place(number, offset, len(line), count)
                    yield _recording(line, f"{path}, line {count}", path.parent), place
                offset += len(line)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines.") from None


def _recording(line: bytes, where: str, folder: Path) -> Recording:
    """One line; a relative audio path counts from the file's own folder."""
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError:
        raise DataError(f"{where}: this is not UTF-8 text; write it as JSON lines in UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: this is not JSON ({error}); write one object per line.") from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: this is not a JSON object; write one object per line.")

    def text(name: str) -> str | None:
        value = values.get(name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise DataError(f"{where}: {name} is {value!r}; it must be some text.")
        return value

    def seconds(name: str) -> float | None:
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise DataError(f"{where}: {name} is {value!r}; it must be a number of seconds.")
        return None if value is None else float(value)

    audio, heard, said, question, answer = (text(n) for n in ("audio", "heard", "text", "question", "answer"))
    if (audio is None) == (heard is None):
        which = "neither audio nor heard" if audio is None else "both audio and heard"
        raise DataError(f"{where}: there is {which}; give one of them.")
    if (question is None) != (answer is None):
        raise DataError(f"{where}: there is a question or an answer without the other; give both or none.")
    if audio is not None and said is None and question is None:
        raise DataError(f"{where}: there is audio but nothing to learn of it; give text, or a question and its answer.")
    start, end = seconds("start") or 0.0, seconds("end")
    if end is not None and end <= start:
        raise DataError(f"{where}: end {end:g} is not after start {start:g}; correct one of them.")
    questions = (Question(question, answer, text("kind") or "question"),) if question is not None else ()
    return Recording(where, heard, folder / audio if audio else None, start, end, said, questions)
