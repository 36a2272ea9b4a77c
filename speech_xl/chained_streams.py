"""Whether a file goes on behind the end that libsndfile sees.

Joined MP3 files and chained Ogg files (inserted advertisements, radio captures) hold several recordings one after
another. libsndfile stops after the first and counts that as the whole. It knows bytes, no samples.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

OGG_SERIAL = slice(14, 18)  # of a page's header: the number of its logical stream (RFC 3533, section 6)
LARGEST_OGG_PAGE = 65_307
XING = re.compile(rb"Xing|Info")
XING_SEARCH = 256  # bytes of the first MPEG frame in which the Xing header stands
FRAMES_FLAG, BYTES_FLAG = 1, 2


def goes_on(path: Path) -> bool:
    """True if another recording follows the first one in an MP3 or Ogg file; False for everything else."""
    with path.open("rb") as file:
        start = file.read(10)
        size = file.seek(0, 2)
        if start.startswith(b"OggS"):
            return _is_chained(file, size)
        if start.startswith(b"ID3") or start[:1] == b"\xff":
            return _is_joined(file, start)
    return False


def _is_chained(file: BinaryIO, size: int) -> bool:
    file.seek(0)
    first = file.read(OGG_SERIAL.stop)[OGG_SERIAL]
    file.seek(max(0, size - 2 * LARGEST_OGG_PAGE))
    tail = file.read()
    at = tail.rfind(b"OggS")
    return at >= 0 and len(tail) >= at + OGG_SERIAL.stop and tail[at:][OGG_SERIAL] != first


def _is_joined(file: BinaryIO, start: bytes) -> bool:
    """Whether another tag or frame stands where the Xing header of the first frame says that the sound ends."""
    at = 0
    if start.startswith(b"ID3"):  # its length is four times seven bits
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(start[6:10], (21, 14, 7, 0), strict=True))
    file.seek(at)
    frame = file.read(XING_SEARCH)
    found = XING.search(frame)
    if frame[:1] != b"\xff" or found is None or len(frame) < found.end() + 12:
        return False
    flags = int.from_bytes(frame[found.end() : found.end() + 4], "big")
    if not flags & BYTES_FLAG:
        return False
    where = found.end() + (8 if flags & FRAMES_FLAG else 4)
    file.seek(at + int.from_bytes(frame[where : where + 4], "big"))
    following = file.read(3)
    return following == b"ID3" or (len(following) == 3 and following[0] == 0xFF and following[1] & 0xE0 == 0xE0)
