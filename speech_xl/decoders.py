"""Files to sound: which decoder reads a file, and its samples as the file holds them.

libsndfile reads WAV, FLAC, MP3, Ogg and AIFF inside this process; everything else (M4A, MP4, WebM, the
sound of any video) comes through a pipe from ffmpeg. A file is judged by its contents, never by its name.
This file knows sampling rates and channels; it does not know the 16 kHz mono that the models hear, which
is audio.py's subject, nor does it judge samples.
"""

from __future__ import annotations

import dataclasses
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

from speech_xl.chained_streams import goes_on
from speech_xl.errors import RecordingError

READ_FRAMES = 16_384  # frames per read; libsndfile loses the whole read that meets damage, so a small one
_UNKNOWN_FRAMES = 2**62  # libsndfile counts 2**63 - 1 frames where a FLAC header leaves its length open
_STREAMED_BYTES = 2**31 - 2**16  # a larger WAV size is the placeholder of a writer that could not seek back
_SIZE_NOTE = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_SHORTEST_LEAD = 0.1  # seconds; less is a codec's own delay
_CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")  # h:m:s, how Matroska and WebM write a track's length
# Usual names of what can be heard, where files have to be told apart before they are opened.
AUDIO_SUFFIXES = "flac m4a m4b ogg oga opus mka wma amr caf aac aiff aif mp3 wav"
VIDEO_SUFFIXES = "mp4 mkv webm mov avi ts 3gp ogv"


@dataclass(frozen=True)
class RecordingInfo:
    """What a file says about itself; `seconds` is a claim that a truncated file does not keep.

    Attributes: `path` as given; `seconds` of sound declared, None if the file does not say or only an
    estimate exists; `sampling_rate` in Hz; `channels`; `format`, a short name such as "FLAC" or "AAC";
    `lead`, seconds for which a video already plays before its sound track starts.
    """

    path: Path
    seconds: float | None
    sampling_rate: int | None
    channels: int | None
    format: str
    lead: float = 0.0


class Decoder(Protocol):
    """One open recording. `damaged` turns True when decoding ended with an error instead of the end."""

    info: RecordingInfo
    damaged: bool

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples from the start, (n, channels) float32 at `info.sampling_rate`."""

    def close(self) -> None:
        """Release the file or end the process; harmless when repeated."""


class SoundSource(Protocol):
    """Sound that is no single file, such as a recording put together of several; heard in a file's place."""

    @property
    def name(self) -> str:
        """What stands for a file name."""

    @property
    def sha256(self) -> str:
        """Hexadecimal; two sources of the same one sound the same."""

    def open_decoder(self) -> Decoder:
        """From the start; any number of times."""


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A file read from front to back.

    soundfile seeks to where it already is after each read of a seekable file. That drops the state which
    an MP3 frame shares with the one before, an audible gap at every block, and fails at the end of a FLAC
    file of unknown length.
    """

    def seekable(self) -> bool:
        return False


class SoundFileDecoder:
    """libsndfile, in this process."""

    def __init__(self, path: Path) -> None:
        # Bytes, because soundfile cannot encode a name that is not valid in the locale.
        self._file = _ForwardFile(os.fsencode(path))
        self.damaged = False
        self.has_samples = self._file.frames > 0
        self.info = RecordingInfo(
            path, self._declared_seconds(), self._file.samplerate, self._file.channels, self._file.format
        )

    def _declared_seconds(self) -> float | None:
        if self._file.frames >= _UNKNOWN_FRAMES:
            return None
        seconds: float = self._file.frames / self._file.samplerate
        # Of a truncated WAV or AIFF file libsndfile counts what is there, and only notes what was declared.
        note = _SIZE_NOTE.search(self._file.extra_info)
        if note is None:
            return seconds
        declared, actual = int(note[1]), int(note[2])
        return seconds * declared / actual if 0 < actual < declared < _STREAMED_BYTES else seconds

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
        assert channels is not None and rate is not None  # ffprobe has told them
        # Rate and channels are the file's own: fixed here, they cannot change in the middle of the pipe.
        command = ["ffmpeg", "-nostdin", "-v", "quiet", *_input(self.info.path), "-map", "0:a:0"]
        command += ["-ac", str(channels), "-ar", str(rate), "-f", "f32le", "pipe:1"]
        process = self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        try:
            # A track that starts late: as silence before it, so that times here are the player's times.
            for start in range(0, silent := round(self.info.lead * rate), READ_FRAMES):
                yield np.zeros((min(READ_FRAMES, silent - start), channels), np.float32)
            frame_bytes = 4 * channels
            while data := process.stdout.read(READ_FRAMES * frame_bytes):
                whole = len(data) // frame_bytes * channels
                yield np.frombuffer(data, "<f4", whole).reshape(-1, channels)
            self.damaged = process.wait() != 0
        finally:
            self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
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
    # libsndfile hears nothing of a WAV file whose writer was stopped before it filled in the length, and only
    # the first of several recordings in one file; ffmpeg reads both to their end.
    several = goes_on(path)
    if not _has_ffmpeg() or (decoder.has_samples and not several):
        return decoder
    decoder.close()
    complete = FFmpegDecoder(path)
    if several:  # what the file declares is the length of the first
        complete.info = dataclasses.replace(complete.info, seconds=None)
    return complete


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


def _has_ffmpeg() -> bool:
    return all(shutil.which(program) for program in ("ffmpeg", "ffprobe"))


def _input(path: Path) -> list[str]:
    """Arguments that name the input to ffmpeg and ffprobe.

    The prefix keeps a name that starts with "-" or holds a colon from being an option or an address; the
    list of protocols keeps a playlist in disguise from reaching the network.
    """
    return ["-protocol_whitelist", "file", "-i", "file:" + os.path.abspath(path)]


def _ffprobe(path: Path) -> RecordingInfo:
    """Ask ffprobe about the first sound track; raises RecordingError as `open_decoder` says."""
    if not _has_ffmpeg():
        raise RecordingError(
            f"{path} is not WAV, FLAC, MP3, Ogg or AIFF, and other formats need ffmpeg, which is not "
            "installed. Install it (macOS: brew install ffmpeg; Debian or Ubuntu: apt install ffmpeg) or "
            "export the recording as WAV."
        )
    entries = "stream=codec_type,codec_name,sample_rate,channels,start_time,duration"
    entries += ":stream_tags=DURATION:format=start_time,duration"
    command = ["ffprobe", "-v", "warning", *_input(path), "-show_entries", entries, "-of", "json"]
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
    lead = _lead(sound, report.get("format", {}))
    seconds = _declared_seconds(sound, report.get("format", {}), lead)
    if b"Estimating duration" in result.stderr:  # from the bit rate, which can be far off
        seconds = None
    return RecordingInfo(path, seconds, rate, channels, sound.get("codec_name", "unknown").upper(), lead)


def _lead(sound: dict[str, Any], container: dict[str, Any]) -> float:
    """Seconds from the start of the file's playing time to the start of its sound track."""
    try:
        lead = float(sound["start_time"]) - float(container["start_time"])
        return lead if _SHORTEST_LEAD <= lead < float(container["duration"]) else 0.0
    except (KeyError, ValueError):
        return 0.0


def _declared_seconds(sound: dict[str, Any], container: dict[str, Any], lead: float) -> float | None:
    """Seconds from the start of the file to the end of its sound track if the file tells them, else to its own."""
    if "duration" in sound:
        return lead + float(sound["duration"])
    clock = _CLOCK.fullmatch(sound.get("tags", {}).get("DURATION", ""))
    if clock is not None:
        return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    return float(container["duration"]) if "duration" in container else None
