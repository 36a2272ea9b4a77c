"""Memories on disk: .sxl files, a folder for each owner, under one byte budget; the least recently used go first.

The folder is the whole truth: nothing else is kept of it, so that a kill at any moment loses nothing and several
servers may share it. A file's access time is when it was last used, its modification time when it was made.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.errors import ApiError
from speech_xl.errors import MemoryFileError, OutputError
from speech_xl.memory import MemoryHeader, read_header
from speech_xl.schedule import format_bytes
from speech_xl.whole_file import remove_leftovers, whole_file

IDENTIFIER = re.compile(r"mem_[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """One kept memory, as its file describes it."""

    id: str
    bytes: int  # of the file
    created: int  # seconds since 1970
    header: MemoryHeader


class Store:
    """OutputError on construction if the folder cannot be used."""

    def __init__(self, folder: Path, budget: int):
        self._folder, self.budget = folder, budget
        self._lock = threading.Lock()  # of what is thrown away
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_leftovers(folder)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "no permission to write")
        except OSError as error:
            raise OutputError(
                f"Memories cannot be kept in {folder} ({error.strerror}); give another --store."
            ) from None

    def path(self, owner: str, identifier: str) -> Path | None:
        """The file of a memory, which is used from now on; None if this owner has none of that name."""
        if not IDENTIFIER.fullmatch(identifier):
            return None
        path = self._folder / owner / f"{identifier}.sxl"
        try:
            os.utime(path, (time.time(), path.stat().st_mtime))
        except OSError:
            return None
        return path

    def keep(self, owner: str, identifier: str, write: Callable[[Path], object]) -> None:
        """`write` a memory's file, whole or not at all, and make room for it.

        ApiError 413 if it is larger than the whole budget, OutputError if the disk does not take it.
        """
        folder = self._folder / owner
        with contextlib.suppress(OSError):  # said by what comes next
            folder.mkdir(mode=0o700, exist_ok=True)
        with whole_file(folder / f"{identifier}.sxl") as temporary:
            write(temporary)
            size = temporary.stat().st_size
            if size > self.budget:
                raise ApiError(
                    413,
                    f"This memory takes {format_bytes(size)}, more than the {format_bytes(self.budget)} kept here.",
                    "memory_too_large",
                )
            self._make_room(size)

    def copy(self, owner: str, identifier: str, source: Path) -> None:
        """`keep` a copy of a file."""
        self.keep(owner, identifier, lambda path: shutil.copyfile(source, path))

    def _make_room(self, size: int) -> None:
        with self._lock:
            files = sorted(self._files(), key=lambda found: found[1].st_atime)
            excess = sum(status.st_size for _, status in files) + size - self.budget
            for path, status in files:
                if excess <= 0:
                    return
                path.unlink(missing_ok=True)
                excess -= status.st_size

    def _files(self, owner: str = "*") -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.glob(f"{owner}/mem_*.sxl"):
            with contextlib.suppress(FileNotFoundError):  # thrown away meanwhile
                yield path, path.stat()

    @property
    def bytes(self) -> int:
        """Of all files, whoever they belong to."""
        return sum(status.st_size for _, status in self._files())

    def entry(self, owner: str, identifier: str) -> Entry | None:
        """What is known of a memory of that owner; None if there is none."""
        path = self.path(owner, identifier)
        return None if path is None else self._read(path, path.stat())

    def entries(self, owner: str) -> list[Entry]:
        """All of an owner's, the newest first; a file that is damaged is left out."""
        found = [self._read(path, status) for path, status in self._files(owner)]
        return sorted(filter(None, found), key=lambda entry: (-entry.created, entry.id))

    @staticmethod
    def _read(path: Path, status: os.stat_result) -> Entry | None:
        try:
            return Entry(path.stem, status.st_size, int(status.st_mtime), read_header(path))
        except MemoryFileError:
            return None

    def delete(self, owner: str, identifier: str) -> bool:
        """Whether there was one."""
        path = self.path(owner, identifier)
        if path is not None:
            path.unlink(missing_ok=True)
        return path is not None
