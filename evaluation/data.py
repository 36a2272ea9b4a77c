"""JSON lines in, questions with known answers out, checked before anything is heard.

A line names a recording, `audio` (a path relative to the file of lines), and what is asked of it. With `question` and
`answer` it is a question, `choices` make it multiple choice; with `text` and no question it asks for the transcript.
It knows files and text; no model and no score.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import error_words, normalise
from speech_xl.errors import SpeechXLError


class DataError(SpeechXLError):
    """A file of JSON lines, or one line of it, that nothing can be judged with."""


@dataclass(frozen=True)
class Item:
    """One thing to ask of one recording.

    Exactly one of `answer` and `text` is set. `span`, in seconds, is where a question's answer is said, or the part
    of the recording whose words `text` is; None: not known, or all of it.
    """

    id: str
    audio: Path
    kind: str
    question: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    text: str | None = None
    span: tuple[float, float] | None = None

    @property
    def prompt(self) -> str:
        """The question as the model gets it: choices that it does not name itself stand behind it."""
        question = self.question or ""
        if all(choice.lower() in question.lower() for choice in self.choices):
            return question
        return f"{question} Choose one: {'; '.join(self.choices)}."


@dataclass(frozen=True)
class Data:
    """The items of one file in its order; `sha256` is that of the file's bytes."""

    items: tuple[Item, ...]
    sha256: str

    def recordings(self) -> dict[Path, list[Item]]:
        """The items of each recording, in the order in which the recordings are first named."""
        grouped: dict[Path, list[Item]] = {}
        for item in self.items:
            grouped.setdefault(item.audio, []).append(item)
        return grouped


def read_data(path: Path) -> Data:
    """Read and check a whole file of JSON lines; DataError names the first line that cannot be used."""
    try:
        content = Path(path).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; write it as JSON lines in UTF-8.") from None
    items = [
        _item(line, f"{path}, line {number}", str(number), Path(path).parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not items:
        raise DataError(f"{path} has no lines; give at least one JSON object.")
    name, times = Counter(item.id for item in items).most_common(1)[0]
    if times > 1:
        raise DataError(f"{path}: {times} lines have the id {name!r}; give every line an id of its own, or none.")
    return Data(tuple(items), hashlib.sha256(content).hexdigest())


def _item(line: str, where: str, number: str, folder: Path) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: this is no JSON; write one object a line.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: this is no JSON object; write one object a line.")
    audio, question, answer, text, kind = (
        _text(fields, name, where) for name in ("audio", "question", "answer", "text", "kind")
    )
    if audio is None:
        raise DataError(f'{where}: there is no "audio"; name the recording, relative to this file.')
    if not (folder / audio).is_file():
        raise DataError(f"{where}: there is no recording {folder / audio}; correct the path or bring the file.")
    known = {"id": _id(fields, where, number), "audio": folder / audio, "span": _span(fields, where)}
    if question is None:
        if text is None:
            raise DataError(f'{where}: there is nothing to ask; give "question" and "answer", or "text".')
        if not (normalise(text) and error_words(text)):
            raise DataError(f"{where}: the text {text!r} has no words; write what is said.")
        return Item(**known, kind=kind or "transcript", text=text)
    if answer is None:
        raise DataError(f'{where}: the question has no "answer"; write the right one.')
    if not normalise(answer):
        raise DataError(f"{where}: the answer {answer!r} has no letter and no digit; write words.")
    choices = _choices(fields, where)
    if choices and normalise(answer) not in map(normalise, choices):
        raise DataError(f"{where}: the answer {answer!r} is none of the choices; write it as one of them.")
    return Item(**known, kind=kind or "question", question=question, answer=answer, choices=choices)


def _text(fields: dict[str, Any], name: str, where: str) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise DataError(f"{where}: {name} is {value!r}; it must be some text.")
    return value


def _id(fields: dict[str, Any], where: str, number: str) -> str:
    """A line's own id; the number of the line where it has none."""
    value = fields.get("id", number)
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise DataError(f"{where}: id is {value!r}; it must be text or a whole number.")
    return str(value)


def _span(fields: dict[str, Any], where: str) -> tuple[float, float] | None:
    start, end = fields.get("start"), fields.get("end")
    if start is None and end is None:
        return None
    for name, value in (("start", start), ("end", end)):
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            raise DataError(f"{where}: {name} is {value!r}; give start and end in seconds, or neither.")
    if end <= start:
        raise DataError(f"{where}: end {end:g} is not after start {start:g}; correct one of them.")
    return float(start), float(end)


def _choices(fields: dict[str, Any], where: str) -> tuple[str, ...]:
    choices = fields.get("choices")
    if choices is None:
        return ()
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        raise DataError(f"{where}: choices must be a list of two texts or more.")
    if not all(map(normalise, choices)) or len(set(map(normalise, choices))) < len(choices):
        raise DataError(f"{where}: choices must be words, and differ after lower-casing and dropping articles.")
    return tuple(choices)
