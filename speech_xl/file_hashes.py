"""SHA-256 of large files, each taken once: kept in the user's cache beside what tells that the file is still the same.

That is its place on the disk, its size and its times of change; the time of the last change of any kind cannot be set back
by who rewrites a file. It knows files, not what they hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from speech_xl.errors import OutputError
from speech_xl.fetching import cache_folder
from speech_xl.whole_file import whole_file

LARGE = 2**24  # bytes; smaller files are hashed as fast as a kept hash is found
SETTLED = 2.0  # seconds without a change, since clocks of file systems tick slowly


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; OSError if it cannot be read."""
    with open(path, "rb") as file:
        before = identity(file.fileno())
        if before[2] < LARGE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        place = Path(path).resolve()
        name = hashlib.blake2b(os.fsencode(place), digest_size=16).hexdigest()
        kept = cache_folder() / "hashes" / f"{name}.json"
        if (known := read(kept, before)) is not None:
            return known
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if identity(file.fileno()) == before and time.time() - max(before[3:]) / 1e9 > SETTLED:
            with contextlib.suppress(OSError, OutputError):  # without a cache it is taken again each time
                kept.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(kept) as temporary:
                    temporary.write_text(json.dumps({"path": str(place), "identity": before, "sha256": found}))
        return found


def identity(file: int) -> list[int]:
    """Device, inode, size, and when contents and anything about an open file changed last, in ns."""
    status = os.fstat(file)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def read(kept: Path, wanted: list[int]) -> str | None:
    """The hash that is kept for a file of that identity; None if there is none."""
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        found = known["sha256"] if known["identity"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and len(found) == 64 else None
