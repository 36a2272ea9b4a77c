"""JSON lines in, recordings with their questions out.

A line names a recording and what is known of it. {"audio", "start"?, "end"?} is a sound file or a part of it, in
seconds; {"heard"} is the words as a recogniser wrote them, for checkpoints that have one. "text" is what was said,
"question" and "answer" belong together, "kind" is a name under which the question's figures are reported. Other
fields are left alone. Consecutive lines of the same recording are one recording with several questions.

It knows no tokens and no tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

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


def read_recordings(paths: Iterable[Path]) -> list[Recording]:
    """All recordings of some files in order; DataError names the file and the line of what is wrong."""
    recordings: list[Recording] = []
    for path in paths:
        before = len(recordings)
        for one in _lines(Path(path)):
            last = recordings[-1] if len(recordings) > before else None
            if last is not None and last.key == one.key:
                recordings[-1] = replace(last, text=last.text or one.text, questions=last.questions + one.questions)
            else:
                recordings.append(one)
        if len(recordings) == before:
            raise DataError(f"{path} has no lines; give at least one JSON object.")
    return recordings


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


_file_hash = lru_cache(maxsize=None)(file_sha256)


def _lines(path: Path) -> Iterator[Recording]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _recording(line, f"{path}, line {number}", path.parent)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; write it as JSON lines in UTF-8.") from None


def _recording(line: str, where: str, folder: Path) -> Recording:
    """One line; a relative audio path counts from the file's own folder."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: this is not JSON ({error}); write one object a line.") from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: this is not a JSON object; write one object a line.")

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
