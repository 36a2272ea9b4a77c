"""Memories that visitors keep: .sxl files and what was heard beside them, a folder for each visitor, on disk.

A visitor is known by a secret that only their browser has. Nothing is kept in this process, so that a restart loses
nothing. Each memory has a lease, which begins again whenever it is opened; within it nobody but its owner deletes it,
and a full shelf refuses rather than forgets. It knows files and the core; no components.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech_xl.conversation import Heard
from speech_xl.errors import MemoryFileError, OutputError
from speech_xl.memory import AudioMemory, MemoryHeader, load_memory, read_header, save_memory
from speech_xl.model import SpeechModel
from speech_xl.recognition import Word
from speech_xl.schedule import format_bytes
from speech_xl.whole_file import remove_leftovers, whole_file

LEASE_DAYS = 30.0
BUDGET = 20 * 2**30  # bytes of all visitors' memories
SHARE = 0.25  # of the budget, for one visitor
LONGEST_NAME = 80  # characters
ABANDONED = 3600.0  # seconds, after which a temporary file is what a killed page left
DAY = 86_400.0
_IDENTIFIER = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Kept:
    """One memory on the shelf, as its files describe it."""

    id: str
    name: str
    created: float  # seconds since 1970
    opened: float
    bytes: int  # of its files
    header: MemoryHeader


def new_secret() -> str:
    """What a browser keeps, and nobody guesses."""
    return secrets.token_urlsafe(24)


class Shelf:
    """OutputError on construction if the folder cannot be used."""

    def __init__(self, folder: Path, days: float = LEASE_DAYS, budget: int = BUDGET):
        self.folder, self.days, self.budget = folder, days, budget
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / ".write").touch()
            (folder / ".write").unlink()
        except OSError as error:
            raise OutputError(
                f"Memories cannot be kept in {folder} ({error.strerror}); give another --shelf."
            ) from None
        self.sweep()

    def sweep(self) -> None:
        """Delete what a killed page left half written, and memories whose lease has ended."""
        now = time.time()
        for visitor in (path for path in self.folder.iterdir() if path.is_dir()):
            with contextlib.suppress(OSError):
                if now - visitor.stat().st_mtime > ABANDONED:  # nobody writes here now
                    remove_leftovers(visitor)
                for notes in visitor.glob("*.json"):
                    if now - notes.stat().st_mtime > self.days * DAY:
                        notes.unlink()
                for path in (
                    *visitor.glob("*.sxl"),
                    *visitor.glob("*.heard"),
                ):  # notes are written last and deleted first
                    if not path.with_suffix(".json").exists() and now - path.stat().st_mtime > ABANDONED:
                        path.unlink()
                visitor.rmdir()  # if nothing is left

    def _visitor(self, secret: str) -> Path:
        return self.folder / hashlib.sha256(f"speech-xl shelf {secret}".encode()).hexdigest()[:32]

    def keep(self, secret: str, name: str, memory: AudioMemory, events: Sequence[Heard], model: SpeechModel) -> str:
        """-> the new memory's id. `events`: what was heard, for the timeline and the transcript, which slots do not hold.

        OutputError if there is no room for it, or the disk does not take it; nothing is left then.
        """
        self.sweep()
        self._check_room(secret, memory.bytes)
        visitor, identifier = self._visitor(secret), secrets.token_hex(8)
        with contextlib.suppress(OSError):  # said by what comes next
            visitor.mkdir(mode=0o700, exist_ok=True)
        path = visitor / f"{identifier}.sxl"
        heard = [dataclasses.asdict(event) for event in events]
        notes = {"name": clean_name(name) or memory.recording.path, "created": time.time()}
        try:
            save_memory(memory, path, model)
            _write(path.with_suffix(".heard"), heard)
            _write(path.with_suffix(".json"), notes)
        except (OutputError, OSError):
            path.unlink(missing_ok=True)
            path.with_suffix(".heard").unlink(missing_ok=True)
            raise OutputError("The memory cannot be kept: this page's disk may be full; download it instead.") from None
        return identifier

    def _check_room(self, secret: str, size: int) -> None:
        mine = sum(p.stat().st_size for p in self._files(self._visitor(secret)))
        everybodys = sum(p.stat().st_size for v in self.folder.iterdir() if v.is_dir() for p in self._files(v))
        for held, most, whose in (
            (mine, SHARE * self.budget, "Your shelf"),
            (everybodys, self.budget, "This page's shelf"),
        ):
            if held + size > most:
                raise OutputError(
                    f"{whose} is full: {format_bytes(held)} of {format_bytes(round(most))} are taken and this memory needs "
                    f"{format_bytes(size)}; delete a memory, or download this one."
                )

    @staticmethod
    def _files(visitor: Path) -> Iterable[Path]:
        return [*visitor.glob("*.sxl"), *visitor.glob("*.heard"), *visitor.glob("*.json")]

    def entries(self, secret: str) -> list[Kept]:
        """A visitor's memories, the newest first; a damaged one is left out."""
        found = [self._read(notes) for notes in self._visitor(secret).glob("*.json")]
        return sorted(filter(None, found), key=lambda kept: (-kept.created, kept.id))

    @staticmethod
    def _read(notes: Path) -> Kept | None:
        memory = notes.with_suffix(".sxl")
        try:
            status = notes.stat()
            said = json.loads(notes.read_text(encoding="utf-8"))
            size = status.st_size + memory.stat().st_size + memory.with_suffix(".heard").stat().st_size
            return Kept(notes.stem, said["name"], said["created"], status.st_mtime, size, read_header(memory))
        except (OSError, ValueError, KeyError, TypeError, MemoryFileError):
            return None

    def path(self, secret: str, identifier: str) -> Path:
        """The .sxl file of one of a visitor's memories; MemoryFileError if they have none of that id."""
        path = self._visitor(secret) / f"{identifier}.sxl"
        if not _IDENTIFIER.fullmatch(identifier) or not path.with_suffix(".json").is_file():
            raise MemoryFileError("This memory is not on your shelf any more; reload the page to see what is.")
        return path

    def open(self, secret: str, identifier: str, model: SpeechModel) -> tuple[str, AudioMemory, list[Heard]]:
        """-> name, memory, what was heard; its lease begins again. MemoryFileError if another model made it."""
        path = self.path(secret, identifier)
        memory = load_memory(path, model)
        try:
            notes = path.with_suffix(".json")
            said = json.loads(notes.read_text(encoding="utf-8"))
            events = [_event(fields) for fields in json.loads(path.with_suffix(".heard").read_text(encoding="utf-8"))]
            notes.touch()
        except (OSError, ValueError, KeyError, TypeError):
            raise MemoryFileError("This memory's notes are damaged; download it and open the file.") from None
        return said["name"], memory, events

    def rename(self, secret: str, identifier: str, name: str) -> None:
        """Give a kept memory another name; its old one stays if nothing of the new can be shown."""
        notes = self.path(secret, identifier).with_suffix(".json")
        said = json.loads(notes.read_text(encoding="utf-8"))
        _write(notes, said | {"name": clean_name(name) or said["name"]})

    def copy(self, secret: str, identifier: str, folder: Path) -> Path:
        """A copy of the .sxl file under the memory's name, for a download."""
        path = self.path(secret, identifier)
        kept = self._read(path.with_suffix(".json"))
        stem = re.sub(r"[^\w. -]", "_", Path(kept.name).stem if kept else identifier).strip(". ") or "memory"
        return Path(shutil.copyfile(path, folder / f"{stem}.sxl"))

    def delete(self, secret: str, identifier: str) -> None:
        """Delete a kept memory, if it is there."""
        path = self.path(secret, identifier)
        for suffix in (".json", ".heard", ".sxl"):
            path.with_suffix(suffix).unlink(missing_ok=True)


def clean_name(name: str) -> str:
    """One line, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())[:LONGEST_NAME].strip()


def _write(path: Path, value: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value), encoding="utf-8")


def _event(fields: dict[str, Any]) -> Heard:
    words = fields["words"]
    return Heard(**(fields | {"words": None if words is None else tuple(Word(**word) for word in words)}))
