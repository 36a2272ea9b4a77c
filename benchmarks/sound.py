"""Sound of any length for benchmarks: a recording decoded again and again until there is enough of it.

Nothing is written, so ten hours cost no disk, and decoding costs what decoding a file of that length costs. It knows
recordings, no models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from speech_xl.audio import file_sha256
from speech_xl.config import SAMPLING_RATE
from speech_xl.decoders import Decoder, RecordingInfo, open_decoder
from speech_xl.errors import RecordingError
from speech_xl.example import EXAMPLE


@dataclass(frozen=True)
class RepeatedSound:
    """`source` from its start again and again, `seconds` of it in all: a speech_xl.decoders.SoundSource."""

    source: Path
    seconds: float

    @property
    def name(self) -> str:
        """The source and the length."""
        return f"{self.source.stem} for {self.seconds:g} s"

    @property
    def sha256(self) -> str:
        """Of the source and the length."""
        return hashlib.sha256(f"{file_sha256(self.source)} {self.seconds}".encode()).hexdigest()

    def open_decoder(self) -> Decoder:
        """From the start of the source."""
        return RepeatingDecoder(self.source, self.seconds)


class RepeatingDecoder:
    """Decodes a file until its end, opens it once more, and so on; RecordingError if it holds no sound."""

    damaged = False

    def __init__(self, path: Path, seconds: float):
        self._path, self._seconds = path, seconds
        self._decoder = open_decoder(path)
        own = self._decoder.info
        self.info = RecordingInfo(path, seconds, own.sampling_rate, own.channels, own.format)

    def blocks(self) -> Iterator[np.ndarray]:
        """See speech_xl.decoders.Decoder."""
        left = round(self._seconds * (self.info.sampling_rate or SAMPLING_RATE))
        while left > 0:
            before = left
            for block in self._decoder.blocks():
                yield block[:left]
                left -= len(block)
                if left <= 0:
                    return
            if left == before:
                raise RecordingError(f"{self._path} holds no sound to repeat; name another recording.")
            self._decoder.close()
            self._decoder = open_decoder(self._path)

    def close(self) -> None:
        """Close the source."""
        self._decoder.close()


def write_long_recording(path: Path, minutes: float, source: Path = EXAMPLE) -> None:
    """`minutes` of sound as a FLAC file, written block by block: for programs that want a file."""
    decoder = RepeatedSound(source, minutes * 60).open_decoder()
    try:
        with sf.SoundFile(
            path, "w", decoder.info.sampling_rate, decoder.info.channels, "PCM_16", format="FLAC"
        ) as file:
            for block in decoder.blocks():
                file.write(block)
    finally:
        decoder.close()


def windows_of(seconds: float, source: Path = EXAMPLE) -> Iterator[np.ndarray]:
    """The same sound as 16 kHz pieces of 30 s, the last one shorter: (n,) float32, for programs that want arrays."""
    decoder = RepeatedSound(source, seconds).open_decoder()
    if decoder.info.sampling_rate != SAMPLING_RATE:
        decoder.close()
        raise RecordingError(f"{source} has {decoder.info.sampling_rate} Hz; name a recording of {SAMPLING_RATE} Hz.")
    size, waiting = 30 * SAMPLING_RATE, np.zeros(0, np.float32)
    try:
        for block in decoder.blocks():
            waiting = np.concatenate([waiting, block.mean(1)])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if len(waiting):
            yield waiting
    finally:
        decoder.close()
