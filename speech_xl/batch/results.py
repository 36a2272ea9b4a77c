"""The output folder: results.jsonl, one line for each thing that is done, and what the lines were made with.

A line is on disk before the next thing begins, so a kill loses what was in work and no more; a line that it cut short is
done again. One process at a time writes to a folder. It knows lines and their names, nothing of what they say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from speech_xl.errors import OutputError
from speech_xl.whole_file import do_with, hold_folder, remove_leftovers, whole_file, whole_lines

RESULTS, SETTINGS, MEMORIES = "results.jsonl", "batch.json", "memories"
MEMORY, TRANSCRIPT, ANSWER, SKIPPED = KINDS = ("memory", "transcript", "answer", "skipped")
Line = dict[str, Any]  # of results.jsonl; docs/batch.md has the fields
Key = tuple[str, str, str]  # the recording's name, one of KINDS, the question of an answer


def key_of(line: Line) -> Key:
    """KeyError or TypeError where it is no line of ours."""
    return line["recording"], line["kind"], line["question"] if line["kind"] == ANSWER else ""


class Results:
    """The results of one folder; a context manager that holds the folder for itself.

    OutputError if it cannot be written to, another batch is at work in it, a line of it is damaged, or its lines
    were made with other `settings`, a flat dictionary of JSON values.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        self.memories = folder / MEMORIES
        self._path = folder / RESULTS
        self._places: dict[Key, tuple[int, int]] = {}  # offset and length in bytes
        self._size = 0
        self._lock = hold_folder(folder, "batch")
        try:
            remove_leftovers(folder)
            self._check(settings)
            if self._path.exists():
                self._read()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _check(self, settings: dict[str, Any]) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if self._path.exists():
                raise OutputError(f"{self._path} is there without {SETTINGS}; name another output folder.")
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            return
        try:
            known = json.loads(do_with(path, path.read_bytes))
            different = next((name for name in settings if known[name] != settings[name]), None)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise OutputError(f"{path} is damaged; name another output folder.") from None
        if different is not None:
            raise OutputError(
                f"{self.folder} holds results of another {different.replace('_', ' ')} ({known[different]}, now "
                f"{settings[different]}); name another output folder."
            )

    def _read(self) -> None:
        for number, line in enumerate(whole_lines(self._path), 1):
            try:
                self._places[key_of(json.loads(line))] = (self._size, len(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise OutputError(
                    f"{self._path}, line {number} is damaged; remove that line, or name another output folder."
                ) from None
            self._size += len(line)

    def has(self, key: Key) -> bool:
        """Whether a line with that key is there."""
        return key in self._places

    def all_keys(self) -> list[Key]:
        """Of all lines, in the file's order."""
        return list(self._places)

    def lines(self, keys: Iterable[Key]) -> Iterator[Line]:
        """Those of the lines that are there, read one at a time."""
        found = [self._places[key] for key in keys if key in self._places]
        if found:
            with do_with(self._path, lambda: open(self._path, "rb")) as file:
                for place in found:
                    yield json.loads(_bytes(file, place))

    def add(self, lines: Iterable[Line]) -> None:
        """Keep lines, together; a later line takes the place of an earlier one with its key."""
        packed = [(key_of(line), (json.dumps(line) + "\n").encode()) for line in lines]

        def append() -> None:
            with open(self._path, "ab") as file:
                file.write(b"".join(data for _, data in packed))

        do_with(self._path, append)
        for key, data in packed:
            self._places[key] = (self._size, len(data))
            self._size += len(data)

    def drop(self, keys: Iterable[Key]) -> None:
        """These lines hold no more; `arrange` takes them out of the file."""
        for key in keys:
            self._places.pop(key, None)

    def arrange(self, keys: Iterable[Key]) -> None:
        """Write the file anew, where that changes it: these lines in this order, then the others as they stand."""
        order = list(dict.fromkeys([*(key for key in keys if key in self._places), *self._places]))
        places, at = {}, 0
        for key in order:
            length = self._places[key][1]
            places[key], at = (at, length), at + length
        if at == self._size and places == self._places:
            return
        with whole_file(self._path) as temporary, open(temporary, "wb") as new, open(self._path, "rb") as old:
            for key in order:
                new.write(_bytes(old, self._places[key]))
        self._places, self._size = places, at


def _bytes(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return file.read(place[1])
