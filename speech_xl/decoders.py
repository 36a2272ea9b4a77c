"""Files to sound: which decoder reads a file, and its samples as the file holds them.

libsndfile reads WAV, FLAC, MP3, Ogg and AIFF inside this process; everything else (M4A, MP4, WebM, the
sound of any video) comes through a pipe from ffmpeg. A file is judged by its contents, never by its name.
This file knows sampling rates and channels; it does not know the 16 kHz mono that the models hear, which
is audio.py's subject, nor does it judge samples.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from speech_xl.errors import RecordingError

READ_FRAMES = 16_384  # frames per read; libsndfile loses the whole read that meets damage, so a small one
_UNKNOWN_FRAMES = 2**62  # libsndfile counts 2**63 - 1 frames where a FLAC header leaves its length open
_STREAMED_BYTES = 2**31 - 2**16  # a WAV size from here on is a placeholder of a writer that could not seek back
_SIZE_NOTE = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_INSTALL = "Install it (macOS: brew install ffmpeg, Debian or Ubuntu: apt install ffmpeg)"


@dataclass(frozen=True)
class RecordingInfo:
    """What a file says about itself; `seconds` is a claim that a truncated file does not keep.

    Attributes: `path` as given; `seconds` of sound declared, None if the file does not say or only an
    estimate exists; `sampling_rate` in Hz; `channels`; `format`, a short name such as "FLAC" or "AAC".
    """

    path: Path
    seconds: float | None
    sampling_rate: int | None
    channels: int | None
    format: str


class Decoder(Protocol):
    """One open recording. `damaged` turns True when decoding ended with an error instead of the end."""

    info: RecordingInfo
    damaged: bool

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples from the start, (n, channels) float32 at `info.sampling_rate`."""

    def close(self) -> None:
        """Release the file or end the process; harmless when repeated."""


class SoundFileDecoder:
    """libsndfile, in this process."""

    def __init__(self, path: Path) -> None:
        # Bytes, because soundfile cannot encode a name that is not valid in the locale.
        self._file = soundfile.SoundFile(os.fsencode(path))
        self.damaged = False
        self.frames = self._file.frames
        rate = self._file.samplerate
        self.info = RecordingInfo(
            path, self._declared_frames() / rate, rate, self._file.channels, self._file.format
        )

    def _declared_frames(self) -> int:
        """Frames by the header; libsndfile itself corrects the number of a truncated WAV or AIFF file."""
        note = _SIZE_NOTE.search(self._file.extra_info)
        if note is None:
            return self.frames
        declared, actual = int(note[1]), int(note[2])
        if not 0 < actual < declared < _STREAMED_BYTES:
            return self.frames
        return round(self.frames * declared / actual)

    def blocks(self) -> Iterator[np.ndarray]:
        while True:
            try:
                block = self._file.read(READ_FRAMES, dtype="float32", always_2d=True)
            except soundfile.SoundFileError:
                self.damaged = True
                return
            if not len(block):
                return
            yield block

    def close(self) -> None:
        self._file.close()


class FFmpegDecoder:
    """The first sound track of a file through a pipe from ffmpeg; RecordingError if there is none."""

    def __init__(self, path: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.damaged = False
        self.info = _ffprobe(path)

    def blocks(self) -> Iterator[np.ndarray]:
        channels, rate = self.info.channels, self.info.sampling_rate
        # Rate and channels are the file's own: fixed here, they cannot change in the middle of the pipe.
        command = ["ffmpeg", "-nostdin", "-v", "quiet", *_input(self.info.path), "-map", "0:a:0"]
        command += ["-ac", str(channels), "-ar", str(rate), "-f", "f32le", "pipe:1"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            frame_bytes = 4 * channels
            while data := self._process.stdout.read(READ_FRAMES * frame_bytes):
                whole = len(data) // frame_bytes * channels
                yield np.frombuffer(data, "<f4", whole).reshape(-1, channels)
            self.damaged = self._process.wait() != 0
        finally:
            self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def open_decoder(path: Path) -> Decoder:
    """Open `path` with the decoder that reads it.

    Raises RecordingError, saying what to do, if `path` is no file, is empty, has no sound track or is not
    sound, or if only ffmpeg could tell and it is not installed.
    """
    _check_is_file(path)
    try:
        decoder = SoundFileDecoder(path)
    except (soundfile.SoundFileError, TypeError):  # TypeError: soundfile wants parameters for a name in .raw
        return FFmpegDecoder(path)
    if 0 < decoder.frames < _UNKNOWN_FRAMES:
        return decoder
    # libsndfile reads no tail of a FLAC file of unknown length, and nothing of a WAV file whose writer was
    # stopped before it could fill in the length; ffmpeg reads both to the end.
    decoder.close()
    has_ffmpeg = shutil.which("ffmpeg") and shutil.which("ffprobe")
    if decoder.frames == 0 and not (has_ffmpeg and _ffprobe(path).seconds_or_estimate):
        raise RecordingError(f"{path} has a header but no sound samples. Record or export it again.")
    return FFmpegDecoder(path)


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise RecordingError(f"{path} does not exist. Check the name of the recording.")
    if path.is_dir():
        raise RecordingError(f"{path} is a folder. Name one recording in it.")
    if not path.is_file():
        raise RecordingError(f"{path} is not a regular file. Save the sound to a file first.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise RecordingError(f"{path} cannot be opened ({error.strerror}). Check its permissions.") from None
    if empty:
        raise RecordingError(f"{path} is empty (zero bytes). Copy or download it again.")


def _input(path: Path) -> list[str]:
    """Arguments that name the input to ffmpeg and ffprobe.

    The prefix keeps a name that starts with "-" or holds a colon from being an option or an address; the
    list of protocols keeps a playlist in disguise from reaching the network.
    """
    return ["-protocol_whitelist", "file", "-i", "file:" + os.path.abspath(path)]


def _ffprobe(path: Path) -> RecordingInfo:
    entries = "stream=codec_type,codec_name,sample_rate,channels,duration:stream_tags=DURATION:format=duration"
    command = ["ffprobe", "-v", "warning", *_input(path), "-show_entries", entries, "-of", "json"]
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        raise RecordingError(
            f"{path} is not WAV, FLAC, MP3, Ogg or AIFF, and other formats need ffmpeg, which is not "
            f"installed. {_INSTALL} or export the recording as WAV."
        )
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    report: dict[str, Any] = json.loads(result.stdout or b"{}")
    streams = report.get("streams", [])
    if result.returncode != 0 or not streams:
        raise RecordingError(
            f"{path} is not a recording that libsndfile or ffmpeg can read. Check that it is sound and "
            "complete, or export it again as WAV."
        )
    sound = next((s for s in streams if s.get("codec_type") == "audio"), None)
    if sound is None:
        raise RecordingError(f"{path} has pictures but no sound track. Choose a recording with sound.")
    rate, channels = int(sound.get("sample_rate", 0)), int(sound.get("channels", 0))
    if not (rate and channels):
        raise RecordingError(f"{path} has a sound track that ffmpeg cannot decode. Export it again as WAV.")
    seconds = _declared_seconds(sound, report.get("format", {}))
    if b"Estimating duration" in result.stderr:  # from the bit rate, which can be far off
        seconds = None
    return RecordingInfo(path, seconds, rate, channels, sound.get("codec_name", "unknown").upper())


def _declared_seconds(sound: dict[str, Any], container: dict[str, Any]) -> float | None:
    """Seconds of the sound track; Matroska and WebM keep them in a tag h:m:s; else of the whole file."""
    if "duration" in sound:
        return float(sound["duration"])
    tag = sound.get("tags", {}).get("DURATION")
    if tag is not None:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return float(container["duration"]) if "duration" in container else None
