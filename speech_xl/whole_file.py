"""Files that are written whole or not at all: under a temporary name beside the wanted one, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from speech_xl.errors import OutputError

T = TypeVar("T")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\.\w+)?")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name to write to; it becomes `path` when the block ends well, and is gone when it does not.

    OutputError where it cannot be written.
    """
    temporary = path.parent / f".{uuid.uuid4().hex}{path.suffix}"
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors would leave 0600
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path} cannot be written ({reason}); choose another folder.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder and below it. Only for a folder that nobody writes to now."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def do_with(path: Path, action: Callable[[], T]) -> T:
    """What `action` returns; an OSError of it is an OutputError that names `path`."""
    try:
        return action()
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder.") from None


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
