"""JSON lines in, questions with known answers out, checked before anything is heard.

A line names a recording, `audio` (a path relative to the file of lines), and what is asked of it. With `question` and
`answer` it is a question, `choices` make it multiple choice; with `text` and no question it asks for the transcript.
It knows files and text; no model and no score.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.metrics import error_words, normalise
from speech_xl.audio import probe
from speech_xl.decoders import SoundSource
from speech_xl.errors import RecordingError, SpeechXLError

LONGEST = 1e9  # seconds
ASKED = ("audio", "question", "answer", "choices", "text", "start", "end", "kind")  # the fields that are ours


class DataError(SpeechXLError):
    """A file of JSON lines, or one line of it, that nothing can be judged with."""


@dataclass(frozen=True)
class Item:
    """One thing to ask of one recording.

    Exactly one of `answer` and `text` is set. `span`, in seconds, is where a question's answer is said, or the part
    of the recording whose words `text` is; None: not known, or all of it. `letters` name the choices, one each, where
    the model is to answer with one of them; `answer` is then a letter.
    """

    id: str
    audio: Path | SoundSource
    kind: str
    question: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    letters: tuple[str, ...] = ()
    text: str | None = None
    span: tuple[float, float] | None = None
    line: str = ""  # SHA-256 of what the line asks

    @property
    def prompt(self) -> str:
        """The question as the model gets it: choices that it does not name itself stand behind it."""
        question = self.question or ""
        if self.letters:
            listed = [f"{letter}. {choice}" for letter, choice in zip(self.letters, self.choices, strict=True)]
            return "\n".join([question, *listed, "Answer with the letter alone."])
        if all(choice.lower() in question.lower() for choice in self.choices):
            return question
        return f"{question} Choose one: {'; '.join(self.choices)}."


class Line(NamedTuple):
    """The fields of one line, and where they stand, for the person who has to mend them."""

    where: str
    fields: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the fields that are asked about: an id, a note or a place in the file changes nothing."""
        asked = {name: self.fields[name] for name in ASKED if self.fields.get(name) is not None}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Data:
    """The items of one file in its order.

    `lines`: the SHA-256 of every line that was read, whatever was chosen of them. `missing`: lines left out because
    their recording is not there.
    """

    items: tuple[Item, ...]
    lines: frozenset[str]
    missing: int = 0

    def recordings(self) -> dict[Path | SoundSource, list[Item]]:
        """The items of each recording, in the order in which the recordings are first named."""
        grouped: dict[Path | SoundSource, list[Item]] = {}
        for item in self.items:
            grouped.setdefault(item.audio, []).append(item)
        return grouped


def read_data(path: Path, kinds: Collection[str] = (), skip_missing: bool = False) -> Data:
    """Read and check a whole file of JSON lines; DataError names the first line that cannot be used."""
    try:
        content = Path(path).read_bytes()
        texts = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; write it as JSON lines in UTF-8.") from None
    lines = [_line(text, f"{path}, line {number}", number) for number, text in enumerate(texts, 1) if text.strip()]
    return check_lines(lines, Path(path), Path(path).parent, kinds, skip_missing)


def check_lines(lines: Sequence[Line], source: Path, folder: Path, kinds: Collection[str], skip_missing: bool) -> Data:
    """Lines of `source` as items; paths are relative to `folder`.

    With `kinds` only these are taken, with `skip_missing` only those whose recording can be heard. DataError for a line
    that cannot be used, a kind that is not there, two lines of one id, and where nothing is left.
    """
    if not lines:
        raise DataError(f"{source} has no lines; give at least one JSON object.")
    for line in lines:
        _check_unicode(line)
    chosen = [line for line in lines if not kinds or _kind(line) in kinds]
    for kind in kinds:
        if kind not in map(_kind, chosen):
            there = ", ".join(dict.fromkeys(map(_kind, lines)))
            raise DataError(f"{source} has no line of the kind {kind!r}; choose of {there}.")
    look = cache(_look)  # many lines are about the same recording
    here = [line for line in chosen if not (skip_missing and _is_missing(line, folder, look))]
    if not here:
        raise DataError(f"None of the recordings of {source} exists; provide at least one.")
    items = tuple(_item(line, folder, look) for line in here)
    name, times = Counter(item.id for item in items).most_common(1)[0]
    if times > 1:
        raise DataError(f"{source}: {times} lines have the id {name!r}; give every line an id of its own, or none.")
    return Data(items, frozenset(line.sha256 for line in lines), len(chosen) - len(here))


def _line(text: str, where: str, number: int) -> Line:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: this is not JSON; write one object per line.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: this is not a JSON object; write one object per line.")
    return Line(where, {"id": str(number)} | fields)


def _kind(line: Line) -> str:
    kind = _text(line, "kind")
    return kind or ("transcript" if line.fields.get("question") is None else "question")


class Look(NamedTuple):
    """What can be told of a recording before it is decoded."""

    trouble: str | None = None  # why it cannot be heard, in a sentence
    seconds: float | None = None  # that it declares, if it does


def _look(recording: Path) -> Look:
    try:
        if recording.is_file():
            return Look(seconds=probe(recording).seconds)
    except RecordingError as error:
        return Look(str(error))
    except OSError:  # a name that no file can have
        pass
    return Look(f"there is no recording {recording}; correct the path or add the file.")


def _is_missing(line: Line, folder: Path, look: Callable[[Path], Look]) -> bool:
    audio = _text(line, "audio")
    return audio is not None and look(folder / audio).trouble is not None


def _check_unicode(line: Line) -> None:
    """JSON can name halves of characters, which no file of results can hold."""
    try:
        json.dumps(line.fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{line.where}: there is an unpaired surrogate, \\ud800 to \\udfff; write it as UTF-8."
        ) from None


def _item(line: Line, folder: Path, look: Callable[[Path], Look]) -> Item:
    where = line.where
    audio, question, answer, text = (_text(line, name) for name in ("audio", "question", "answer", "text"))
    if audio is None:
        raise DataError(f'{where}: there is no "audio"; name the recording, relative to this file.')
    trouble, seconds = look(folder / audio)
    if trouble is not None:
        raise DataError(f"{where}: {trouble}")
    span = _span(line)
    if span is not None and seconds is not None and span[0] >= seconds:
        raise DataError(f"{where}: start {span[0]:g} is after the recording's end at {seconds:g} s; correct it.")
    known = Item(_id(line), folder / audio, _kind(line), span=span, line=line.sha256)
    if question is None:
        if text is None:
            raise DataError(f'{where}: there is nothing to ask; give "question" and "answer", or "text".')
        if not (normalise(text) and error_words(text)):
            raise DataError(f"{where}: the text {text!r} has no words; write what is said.")
        return dataclasses.replace(known, text=text)
    if answer is None:
        raise DataError(f'{where}: the question has no "answer"; write the right one.')
    if not normalise(answer):
        raise DataError(f"{where}: the answer {answer!r} has no letter and no digit; write words.")
    if isinstance(line.fields.get("choices"), dict):
        lettered = _lettered_choices(line)
        letter = _letter_of(answer, lettered, where)
        texts = tuple(lettered.values())
        return dataclasses.replace(known, question=question, answer=letter, choices=texts, letters=tuple(lettered))
    choices = _choices(line)
    if choices and normalise(answer) not in map(normalise, choices):
        raise DataError(f"{where}: the answer {answer!r} is none of the choices; write it as one of them.")
    return dataclasses.replace(known, question=question, answer=answer, choices=choices)


def _text(line: Line, name: str) -> str | None:
    value = line.fields.get(name)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise DataError(f"{line.where}: {name} is {value!r}; it must be some text.")
    return value


def _id(line: Line) -> str:
    value = line.fields["id"]
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise DataError(f"{line.where}: id is {value!r}; it must be text or a whole number.")
    return str(value)


def _span(line: Line) -> tuple[float, float] | None:
    if line.fields.get("start") is None and line.fields.get("end") is None:
        return None
    first, last = (_seconds(line, name) for name in ("start", "end"))
    if last <= first:
        raise DataError(f"{line.where}: end {last:g} is not after start {first:g}; correct one of them.")
    return first, last


def _seconds(line: Line, name: str) -> float:
    value = line.fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < LONGEST:
        raise DataError(f"{line.where}: {name} is {value!r}; give start and end in seconds, or neither.")
    return float(value)


def _choices(line: Line) -> tuple[str, ...]:
    choices = line.fields.get("choices")
    if choices is None:
        return ()
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
        raise DataError(
            f"{line.where}: choices must be a list of two texts or more, or an object of letters and texts."
        )
    if not all(map(normalise, choices)) or len(set(map(normalise, choices))) < len(choices):
        raise DataError(f"{line.where}: choices must be words, and differ after lower-casing and dropping articles.")
    return tuple(choices)


def _lettered_choices(line: Line) -> dict[str, str]:
    choices = line.fields["choices"]
    if len(choices) < 2 or not all(re.fullmatch("[A-Z]", k) and isinstance(v, str) for k, v in choices.items()):
        raise DataError(f"{line.where}: choices must be two letters or more, A to Z, each with its text.")
    return choices


def _letter_of(answer: str, choices: dict[str, str], where: str) -> str:
    """The letter of a right answer that is written as its letter, or as its text."""
    letter = answer.strip().upper()
    if letter in choices:
        return letter
    same = [letter for letter, choice in choices.items() if normalise(choice) == normalise(answer)]
    if len(same) != 1:
        raise DataError(f"{where}: the answer {answer!r} is none of the choices; write it as one of them.")
    return same[0]
