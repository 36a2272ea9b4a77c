"""Files that are written whole or not at all: in a hidden folder beside the wanted name, then renamed.

A writer holds the lock of its hidden folder, and a lock ends with its process. So what a killed writer left is known for
that, and goes when the same file is written again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from speech_xl.errors import OutputError

T = TypeVar("T")
_HIDDEN = re.compile(r"\.[0-9a-f]{32}\.\d+")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name to write to; it becomes `path` when the block ends well, and is gone when it does not.

    OutputError where it cannot be written.
    """
    with writing(path), _hidden_folder(path) as folder:
        temporary = folder / path.name
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would leave 0600
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What a disk refuses in the block, a full one say, is an OutputError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written ({reason}); choose another folder.") from error


@contextlib.contextmanager
def _hidden_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that nobody else writes to; gone afterwards."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]  # a name of any length has one
    lock, number = None, 0
    while lock is None:
        folder = path.parent / f".{digest}.{number}"
        made = False
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            made = True
        lock, number = _lock(folder, made), number + 1  # beyond 0 where others write the same file now
    try:
        _empty(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path, is_ours: bool) -> int | None:
    """A descriptor that holds a folder for this process; None where another one has it, or it is somebody else's.

    Where the file system knows no locks, a folder is held by whoever has just made it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if is_ours and not isinstance(error, FileNotFoundError):
            raise
        return None
    with contextlib.suppress(OSError):  # gone meanwhile
        found = os.fstat(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except OSError as error:
            is_held = is_ours and not isinstance(error, BlockingIOError)
        if is_held and found.st_uid == os.geteuid() and os.path.samestat(found, os.lstat(folder)):
            return descriptor
    os.close(descriptor)
    return None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def hold_folder(folder: Path, work: str) -> FileLock:
    """Make a folder and keep it for this process until the lock is released; OutputError while another `work` has it."""

    def acquire() -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(f"Another {work} is at work in {folder}; wait for it, or name another folder.") from None

    do_with(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
    lock = FileLock(folder / ".lock")
    do_with(folder, acquire)
    return lock


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder and below it; who writes there now is left alone."""
    for path in folder.rglob(".*"):
        if _HIDDEN.fullmatch(path.name) and (lock := _lock(path, False)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def do_with(path: Path, action: Callable[[], T]) -> T:
    """What `action` returns; see `writing`."""
    with writing(path):
        return action()


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that grows line by line, ends included. A last one that a kill cut short is taken off the file."""
    size = 0
    with do_with(path, lambda: open(path, "rb")) as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            yield line
            size += len(line)
    if size < path.stat().st_size:
        do_with(path, lambda: os.truncate(path, size))
