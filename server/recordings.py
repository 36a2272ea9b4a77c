"""Recordings that clients send: base64, data: URLs and uploaded files become files with a hash, in folders of their own.

A recording is judged by its contents; the format that a client names is checked against them, and its name for the
file is kept only as far as it is a name. What is heard in it is not this file's subject.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from starlette.datastructures import FormData, UploadFile

from server.errors import ApiError
from server.settings import MIB
from speech_xl.errors import without_folder
from speech_xl.schedule import format_bytes

FORMATS = ("wav", "mp3", "flac", "ogg", "m4a")  # that `input_audio.format` may name
LONGEST_NAME = 60  # characters: four bytes each still make a file name
ENCODED_BLOCK = 4 * MIB  # base64 characters decoded at a time; four make three bytes
HEAD = 12  # bytes that tell a format


@dataclass(frozen=True)
class Recording:
    """A file that somebody sent, alone in a temporary folder. `close` deletes both."""

    path: Path
    sha256: str  # of its bytes
    folder: tempfile.TemporaryDirectory[str]

    def close(self) -> None:
        """Delete the file and its folder."""
        self.folder.cleanup()

    @property
    def is_memory(self) -> bool:
        """Whether it is a safetensors file, as .sxl files are, and no sound."""
        with self.path.open("rb") as file:
            head = file.read(9)
        return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < self.path.stat().st_size

    @contextlib.contextmanager
    def named(self) -> Iterator[Path]:
        """Its path; errors about it say its name without the folder."""
        with without_folder(self.path.parent):
            yield self.path


class RecordingWriter:
    """A recording that arrives in pieces. Use as `with`; `finish` hands it over, and without it nothing is left."""

    def __init__(self, name: str, limit: int):
        self._limit, self._taken, self._digest = limit, 0, hashlib.sha256()
        self._folder = tempfile.TemporaryDirectory(prefix="speech-xl-")
        self._path = Path(self._folder.name) / safe_name(name)
        self._file = self._path.open("wb")
        self._is_finished = False

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._is_finished:
            self._folder.cleanup()

    def write(self, piece: bytes) -> None:
        """ApiError 413 beyond the limit."""
        self._taken += len(piece)
        if self._taken > self._limit:
            raise ApiError(413, f"The recording is larger than {format_bytes(self._limit)}.", "audio_too_large")
        self._digest.update(piece)
        self._file.write(piece)

    def finish(self) -> Recording:
        """ApiError 400 if nothing was written."""
        if not self._taken:
            raise ApiError(400, "The recording is empty; send its bytes.", "invalid_audio")
        self._file.close()
        self._is_finished = True
        return Recording(self._path, self._digest.hexdigest(), self._folder)


def safe_name(name: str) -> str:
    """What of a client's name for a file can be one: no folders, nothing that does not print, not too long."""
    name = "".join(c for c in re.split(r"[/\\]", name)[-1] if c.isprintable()).strip(". ")
    stem, point, suffix = name.rpartition(".")
    if len(suffix) > 8 or not stem:
        return name[:LONGEST_NAME] or "recording"
    return stem[: LONGEST_NAME - 9] + point + suffix


def from_file(file: IO[bytes], name: str, limit: int) -> Recording:
    """An uploaded file, read from where it stands."""
    with RecordingWriter(name, limit) as writer:
        while piece := file.read(MIB):
            writer.write(piece)
        return writer.finish()


async def file_of(form: FormData, limit: int) -> Recording | None:
    """What a form has in its field `file`; None where that is no file."""
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        return None
    return await asyncio.to_thread(from_file, upload.file, upload.filename or "", limit)


def from_input_audio(data: str, kind: str, limit: int) -> Recording:
    """The part {"type": "input_audio"}: base64, and the format that it must turn out to have."""
    if kind not in FORMATS:
        raise ApiError(
            400, f"input_audio.format must be one of {', '.join(FORMATS)}, not {kind[:20]!r}.", "invalid_format"
        )
    recording = from_base64(data, f"audio.{kind}", limit)
    with recording.path.open("rb") as file:
        found = format_of(file.read(HEAD))
    if found != kind:
        recording.close()
        what = f"are {found}" if found else "are none of the formats that are known here"
        raise ApiError(
            400, f"input_audio.format says {kind}, but the bytes {what}; say what they are.", "invalid_format"
        )
    return recording


def from_data_url(url: str, limit: int) -> Recording:
    """data:MEDIA TYPE;base64,... (RFC 2397)."""
    comma = url.find(",", 0, 200)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        raise ApiError(
            400, "audio_url.url must look like data:audio/wav;base64,... if it is a data: URL.", "invalid_url"
        )
    return from_base64(url, "audio", limit, start=comma + 1)


def from_base64(text: str, name: str, limit: int, start: int = 0) -> Recording:
    """Base64 (RFC 4648) from character `start` on, white space in it or not."""
    if re.search(r"\s", text):
        text, start = "".join(text[start:].split()), 0
    with RecordingWriter(name, limit) as writer:
        try:
            for at in range(start, len(text), ENCODED_BLOCK):
                block = text[at : at + ENCODED_BLOCK]
                if block.endswith("=") and at + ENCODED_BLOCK < len(text):
                    raise ValueError("padding in the middle")
                writer.write(binascii.a2b_base64(block, strict_mode=True))
        except ValueError:  # binascii.Error is one, and what a2b_base64 says of characters beyond ASCII
            raise ApiError(400, "The audio is not valid base64; encode the file's bytes.", "invalid_base64") from None
        return writer.finish()


def format_of(head: bytes) -> str | None:
    """The one of FORMATS that a file with these first bytes has; None for any other."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[4:8] == b"ftyp":
        return "m4a"
    # An ID3 tag, or the sync word of MPEG audio with a layer: without one it is AAC.
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06):
        return "mp3"
    return None
