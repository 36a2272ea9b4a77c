"""results.jsonl: one answered item a line, written as it comes, and taken up again after a kill.

Every line says which model and settings, which line of the data and which sound it belongs to, so that an answer to
anything else is never counted. It knows lines and files; no model and no figures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.data import Data, Item
from evaluation.metrics import Scores
from speech_xl.audio import file_sha256
from speech_xl.decoders import SoundSource
from speech_xl.errors import SpeechXLError
from speech_xl.whole_file import do_with, whole_lines

NAME = "results.jsonl"


class ResultsError(SpeechXLError):
    """A results file that is damaged, or of another model, other data or other settings."""


@dataclass(frozen=True)
class Run:
    """What must be the same for results to be comparable."""

    model: str
    fingerprint: str  # of the checkpoint
    backend: str
    memory_bits: int


OTHERS = {
    "model": "another model",
    "fingerprint": "a model with other weights",
    "backend": "another backend",
    "memory_bits": "another number of memory bits",
}


NUMBER = (int, float)
TYPES = {
    "id": (str,),
    "audio": (str,),
    "kind": (str,),
    "said": (str,),
    "name": (str,),
    "ratio": (int, type(None)),
    "seconds": NUMBER,
    "bytes": (int,),
    "listen_seconds": NUMBER,
    "answer_seconds": NUMBER,
    "line": (str,),
    "sound": (str,),
}


@dataclass(frozen=True)
class Method:
    """One way to keep a recording. `ratio`: speech tokens a slot; None: every one of them, or their text."""

    name: str  # a summarizer's, or "cascade"
    ratio: int | None

    @property
    def label(self) -> str:
        """What tables call it: the name, and the ratio if it has one."""
        return self.name if self.ratio is None else f"{self.name} {self.ratio}"

    @property
    def ratio_label(self) -> str:
        """The ratio in a table: "8", "raw", or nothing where text is kept."""
        return "" if self == CASCADE else "raw" if self.ratio is None else str(self.ratio)


RAW = Method("raw", None)  # the same whatever the summarizer
CASCADE = Method("cascade", None)


@dataclass(frozen=True)
class Result:
    """One item, answered by one method.

    `bytes` is the size of the recording's memory, `listen_seconds` the time it took to make; items of one
    recording share a memory unless the run was stopped between them. `line` and `sound` are the SHA-256 of what was
    asked and of the recording that was heard.
    """

    method: Method
    id: str
    audio: str  # the recording's file name
    kind: str
    said: str
    scores: Scores
    evidence: tuple[float, float] | None  # seconds of the strongest span
    seconds: float  # heard of the recording
    bytes: int
    listen_seconds: float
    answer_seconds: float
    line: str = ""
    sound: str = ""


def _to_line(run: Run, result: Result) -> str:
    fields = dataclasses.asdict(result)
    method = fields.pop("method")
    return json.dumps({**dataclasses.asdict(run), **method, **fields}, ensure_ascii=False) + "\n"


def _from_line(line: bytes) -> tuple[Run, Result]:
    """Raises ValueError, KeyError or TypeError where the line is not one of ours."""
    fields = json.loads(line)
    for name, types in TYPES.items():
        if type(fields[name]) not in types:
            raise TypeError(name)
    run = Run(**{f.name: fields.pop(f.name) for f in dataclasses.fields(Run)})
    method = Method(fields.pop("name"), fields.pop("ratio"))
    fields["scores"] = {name: (float(points), float(most)) for name, (points, most) in fields["scores"].items()}
    fields["evidence"] = None if fields["evidence"] is None else tuple(fields["evidence"])
    return run, Result(method=method, **fields)


class ResultsFile:
    """The results of one run; in a folder each is on disk before the next item is asked, without one in memory only.

    What is in the folder already counts for the items of `data` that it is an answer to: the same line about the same
    sound, wherever in the file the line stands now.
    """

    def __init__(self, run: Run, folder: Path | None, data: Data):
        self._run = run
        self._data = data
        self._changed = 0
        self._sounds: dict[Path | SoundSource, str] = {}
        self._path = None if folder is None else folder / NAME
        self._results: dict[tuple[Method, str], Result] = {}
        if folder is not None and self._path is not None:
            do_with(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
            if self._path.exists():
                self._read(self._path)

    def _read(self, path: Path) -> None:
        items: dict[str, list[Item]] = {}
        for item in self._data.items:
            items.setdefault(item.line, []).append(item)
        known = False
        for number, line in enumerate(whole_lines(path), 1):  # what a kill cut short is asked again
            try:
                run, result = _from_line(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ResultsError(
                    f"{path}, line {number} is damaged; remove that line, or name another output folder."
                ) from None
            for name, other in dataclasses.asdict(run).items():
                if other != getattr(self._run, name):
                    raise ResultsError(
                        f"{path} is of {OTHERS[name]} ({other}, now {getattr(self._run, name)}); "
                        "name another output folder."
                    )
            self._take_up(result, items.get(result.line, []))
            known = known or result.line in self._data.lines
        if self._changed and not known:
            raise ResultsError(f"{path} is of other data: none of its lines is here; name another output folder.")

    def _take_up(self, result: Result, items: Sequence[Item]) -> None:
        of_sound = [item for item in items if item.audio.name == result.audio]
        same = [item for item in of_sound if self._sound(item.audio) == result.sound]
        for item in same:
            self._results[result.method, item.id] = dataclasses.replace(result, id=item.id)
        if result.line not in self._data.lines or (of_sound and not same):
            self._changed += 1

    def _sound(self, audio: Path | SoundSource) -> str:
        if audio not in self._sounds:  # many answers are about one recording
            self._sounds[audio] = file_sha256(audio) if isinstance(audio, Path) else audio.sha256
        return self._sounds[audio]

    @property
    def changed(self) -> str:
        """A sentence about answers in the folder that count no more; "" where there are none."""
        if not self._changed:
            return ""
        return (
            f"Answers in {NAME} that are not counted, because their line or its recording has changed or gone: "
            f"{self._changed}."
        )

    def has(self, method: Method, item: str) -> bool:
        """Whether this method's answer to this item is there."""
        return (method, item) in self._results

    def add(self, result: Result) -> None:
        """Keep a result; OutputError if it cannot be written."""
        if self._path is not None:
            path = self._path
            do_with(path, lambda: _append(path, _to_line(self._run, result)))
        self._results[result.method, result.id] = result

    def of(self, method: Method, items: list[str]) -> list[Result]:
        """A method's results in the order of `items`, those that are there."""
        return [self._results[method, item] for item in items if (method, item) in self._results]


def _append(path: Path, line: str) -> None:
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(line)
