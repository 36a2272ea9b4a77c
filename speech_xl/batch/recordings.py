"""From what stands on the command line to a list of recordings: folders, globs, files, and JSON lines.

Recordings are named, not opened: whether one can be heard is found out when it is.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mimetypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech_xl.errors import QuestionError, RecordingError

LISTS, MEMORY_SUFFIX = (".jsonl", ".ndjson"), ".sxl"
HEARD = ("audio/", "video/", "application/ogg", "application/mxf", "application/vnd.ms-asf")  # media types
LONGEST_NAME = 200  # bytes of a file name; most file systems allow 255, and an ending is added


@dataclass(frozen=True)
class Recording:
    """One recording, or a memory (.sxl) of one.

    `name` is what the results call it: its path below the folder, the glob's fixed part or the list that it comes
    from. `path` is absolute. `questions` are its own, beside those that all are asked.
    """

    name: str
    path: Path
    questions: tuple[str, ...] = ()

    @property
    def is_memory(self) -> bool:
        """Whether it is a .sxl file, which need not be heard."""
        return self.path.suffix.lower() == MEMORY_SUFFIX

    def memory_file(self, folder: Path) -> Path:
        """Where in a folder its memory is kept: under its own name, made one that stays inside and is not too long."""
        parts = Path(self.name).parts
        if Path(self.name).is_absolute() or ".." in parts:
            parts = (hashlib.sha256(os.fsencode(self.name)).hexdigest()[:16], parts[-1])
        *folders, last = parts
        if len(os.fsencode(last)) > LONGEST_NAME:
            last = hashlib.sha256(os.fsencode(last)).hexdigest()
        return folder.joinpath(*folders, f"{last}{MEMORY_SUFFIX}")


def find_recordings(inputs: Sequence[str], output: Path) -> list[Recording]:
    """The recordings of all inputs, each once, in order; nothing below `output` is one.

    RecordingError for an input that names none, or where two would have one name; QuestionError for a bad JSON line.
    """
    found: dict[Path, Recording] = {}
    names: dict[str, Path] = {}
    outside = Path(os.path.abspath(output))
    for text in inputs:
        named = list(_of_input(text))
        here = [recording for recording in named if not recording.path.is_relative_to(outside)]
        if named and not here:
            raise RecordingError(f"All that {text} names lies in the output folder; name another output folder.")
        if not here:
            raise RecordingError(
                f"{text} names no recording; give a folder, a glob, recordings, or a .jsonl list of them."
            )
        for recording in here:
            known = found.get(recording.path)
            if known is not None:
                questions = dict.fromkeys(known.questions + recording.questions)
                found[recording.path] = Recording(known.name, known.path, tuple(questions))
                continue
            other = names.setdefault(recording.name, recording.path)
            if other != recording.path:
                raise RecordingError(
                    f"{other} and {recording.path} would both be called {recording.name}; name a folder above both."
                )
            found[recording.path] = recording
    return list(found.values())


def _of_input(text: str) -> Iterator[Recording]:
    path = Path(text)
    if path.is_dir():
        yield from (_below(path, file) for file in _files(path) if _may_be_heard(file))
    elif path.suffix.lower() in LISTS and path.is_file():
        yield from _listed(path)
    elif path.exists() or not glob.has_magic(text):
        if not path.exists():
            raise RecordingError(f"There is no {text}; check the path.")
        yield _below(path.parent, path)
    else:
        root = Path(*_before_magic(path.parts))
        for match in sorted(glob.glob(text, recursive=True)):
            if Path(match).is_dir():
                continue
            yield _below(root, Path(match))


def _before_magic(parts: Sequence[str]) -> list[str]:
    """The folders of a glob up to the first that is a pattern."""
    fixed = list(parts[:-1])
    for number, part in enumerate(fixed):
        if glob.has_magic(part):
            return fixed[:number]
    return fixed


def _below(folder: Path, file: Path) -> Recording:
    return Recording(file.relative_to(folder).as_posix(), Path(os.path.abspath(file)))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, in order; hidden ones are not meant."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _may_be_heard(path: Path) -> bool:
    """Whether a file's name does not say that it is something else: a text, a picture, a list."""
    if path.suffix.lower() in (MEMORY_SUFFIX, *LISTS):
        return path.suffix.lower() == MEMORY_SUFFIX
    kind, _ = mimetypes.guess_type(path.name)
    return kind is None or kind.startswith(HEARD)


def _listed(path: Path) -> Iterator[Recording]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"The list {path} cannot be read ({error}); give JSON lines in UTF-8.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _recording(line, f"{path}, line {number}", path.parent)


def _recording(line: str, where: str, folder: Path) -> Recording:
    """A line {"audio", "question"? or "questions"?}; other fields are left alone."""
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not _is_path(fields.get("audio")):
        raise QuestionError(f"{where}: a line needs an \"audio\" field, the recording's path from the list's folder.")
    single, several = fields.get("question"), fields.get("questions", [])
    asked = several if single is None else [single, *several] if isinstance(several, list) else several
    if not isinstance(asked, list) or not all(isinstance(question, str) for question in asked):
        raise QuestionError(f'{where}: "question" must be text and "questions" a list of texts.')
    audio = fields["audio"]
    return Recording(Path(os.path.normpath(audio)).as_posix(), Path(os.path.abspath(folder / audio)), tuple(asked))


def _is_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.strip() != "" and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False
