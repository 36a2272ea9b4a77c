"""Files that are written whole or not at all: under a temporary name beside the wanted one, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from speech_xl.errors import OutputError

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
