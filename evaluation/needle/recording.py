"""A recording that is never whole anywhere: speech of many files, with a needle in it, composed while it is heard.

Only a block of it and the needle are in memory, whatever its length. It knows files and samples; no questions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_xl.audio import AudioReader
from speech_xl.config import SAMPLING_RATE
from speech_xl.decoders import RecordingInfo

PAUSE = SAMPLING_RATE // 2  # samples of silence before and behind the needle, so that no word runs into it


@dataclass(frozen=True)
class NeedleRecording:
    """`samples` of speech at 16 kHz, the needle's and its pauses' among them; heard as a file is (a SoundSource).

    `speech` plays in its order, and from its first file again when all are over. `start` is the needle's first sample.
    """

    name: str
    speech: tuple[Path, ...]
    needle: Path
    start: int
    samples: int

    @property
    def sha256(self) -> str:
        """Of the description, not of the sound; wherever the files stand."""
        parts = [path.name for path in self.speech], self.needle.name, self.start, self.samples
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def open_decoder(self) -> NeedleDecoder:
        """From the start; any number of times."""
        return NeedleDecoder(self)

    def __str__(self) -> str:
        return self.name


class NeedleDecoder:
    """Plays a NeedleRecording from its start."""

    def __init__(self, recording: NeedleRecording) -> None:
        self._recording = recording
        self._played: Iterator[np.ndarray] = iter(())
        self.damaged = False
        self.info = RecordingInfo(Path(recording.name), recording.samples / SAMPLING_RATE, SAMPLING_RATE, 1, "composed")

    def blocks(self) -> Iterator[np.ndarray]:
        """(n, 1) float32."""
        self._played = self._play()
        for block in self._played:
            yield block[:, None]

    def _play(self) -> Iterator[np.ndarray]:
        recording, silence = self._recording, np.zeros(PAUSE, np.float32)
        needle = read_needle(recording.needle)
        speech = _Speech(recording.speech)
        try:
            yield from speech.take(recording.start - PAUSE)
            yield from (silence, needle, silence)
            yield from speech.take(recording.samples - recording.start - len(needle) - PAUSE)
        finally:
            speech.close()

    def close(self) -> None:
        if hasattr(self._played, "close"):
            self._played.close()


class _Speech:
    """Files one behind another, for ever; `take` goes on where the last one ended."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._blocks = self._read(files)
        self._rest = np.zeros(0, np.float32)

    @staticmethod
    def _read(files: tuple[Path, ...]) -> Generator[np.ndarray]:
        while True:
            for path in files:
                with AudioReader(path) as reader:
                    yield from reader

    def take(self, samples: int) -> Iterator[np.ndarray]:
        while samples > 0:
            if not len(self._rest):
                self._rest = next(self._blocks)
            block, self._rest = self._rest[:samples], self._rest[samples:]
            samples -= len(block)
            yield block

    def close(self) -> None:
        self._blocks.close()


def read_needle(path: Path) -> np.ndarray:
    """(n,) float32 at 16 kHz: all of it, for a needle is a sentence. RecordingError if it cannot be heard."""
    with AudioReader(path) as reader:
        return np.concatenate(list(reader))
