"""Any recording to 16 kHz mono float32 blocks, streaming, in constant memory whatever its length.

It mixes channels down by their mean, resamples with soxr in blocks (equal to resampling in one go),
refuses what is not sound, and says in a warning when a damaged file gave less than it declares. Nothing is
ever cut or padded. Which decoder reads a file is decoders.py's subject; mel frames and windows are
features.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import soxr

from speech_xl.config import SAMPLING_RATE
from speech_xl.decoders import RecordingInfo, SoundSource, open_decoder
from speech_xl.errors import RecordingError

__all__ = ["AudioReader", "RecordingInfo", "file_sha256", "probe"]

SHORTEST_SECONDS = 0.1  # less holds no syllable
RATES = range(1_000, 1_000_001)  # Hz; a rate outside is a broken header
LOUDEST = 2.0**31  # full scale is 1; some tools store unscaled integers as floats, up to this
_MISSING_SECONDS = 0.25  # codecs pad and headers round: a shortfall is reported from here on
_HASH_BYTES = 2**20


def probe(path: str | Path) -> RecordingInfo:
    """What the recording at `path` declares, without decoding it; raises RecordingError if unreadable."""
    decoder = open_decoder(Path(path))
    decoder.close()
    return decoder.info


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the bytes of the file, read in pieces; RecordingError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(_HASH_BYTES):
                digest.update(piece)
    except OSError as error:
        raise RecordingError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from None
    return digest.hexdigest()


class AudioReader:
    """Iterate over a recording as 16 kHz mono blocks; a context manager that can be left early.

    Each block is (n,) float32 and finite, n = `block_seconds` at 16 kHz except in the last block. Reading
    happens once, like a file's. Leaving the `with` block, or `close()`, ends a running ffmpeg; call it from
    the thread that iterates.

    Parameters
    ----------
    path : str, Path or SoundSource
        The recording: any format, sampling rate, number of channels and length.
    block_seconds : float
        Length of a block, at least SHORTEST_SECONDS.

    Attributes
    ----------
    info : RecordingInfo
        What the file declares.
    samples_read : int
        16 kHz samples handed out so far.
    warnings : list of str
        One sentence for each thing that a listener should know, complete when the iteration ends.

    Raises
    ------
    RecordingError
        On construction, if the file cannot be read as sound; while iterating, if it holds NaN or infinite
        samples, or, at its end, less than SHORTEST_SECONDS of sound.
    """

    def __init__(self, path: str | Path | SoundSource, block_seconds: float = 5.0) -> None:
        if block_seconds < SHORTEST_SECONDS:
            raise ValueError(f"block_seconds must be at least {SHORTEST_SECONDS}, not {block_seconds}")
        self.path = Path(path) if isinstance(path, str) else path
        self.samples_read = 0
        self.warnings: list[str] = []
        self._block_samples = round(block_seconds * SAMPLING_RATE)
        self._decoder = open_decoder(self.path) if isinstance(self.path, Path) else self.path.open_decoder()
        self.info = self._decoder.info
        self._blocks = self._read()
        if self.info.sampling_rate not in RATES:
            self.close()
            raise RecordingError(
                f"{self.path} declares a sampling rate of {self.info.sampling_rate} Hz, which no recording "
                "has. Export it again at 16000 Hz or more."
            )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, computed when first asked for; of a SoundSource, what it says of itself."""
        return file_sha256(self.path) if isinstance(self.path, Path) else self.path.sha256

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._blocks

    def close(self) -> None:
        """Stop reading and leave no process or open file behind; the iteration is then over."""
        self._blocks.close()
        self._decoder.close()

    def _read(self) -> Generator[np.ndarray]:
        block, filled = np.empty(self._block_samples, np.float32), 0
        try:
            for piece in self._resampled():
                while len(piece):
                    taken = min(len(piece), len(block) - filled)
                    block[filled : filled + taken] = piece[:taken]
                    piece, filled = piece[taken:], filled + taken
                    if filled == len(block):
                        self.samples_read += filled
                        yield block
                        block, filled = np.empty(self._block_samples, np.float32), 0
            self.samples_read += filled
            self._check_enough()
            self._note_shortfall()
            if filled:
                yield block[:filled]
        finally:
            self._decoder.close()

    def _resampled(self) -> Iterator[np.ndarray]:
        """The whole recording as pieces of any length, (n,) float32 at 16 kHz."""
        rate = self.info.sampling_rate
        if rate == SAMPLING_RATE:
            yield from map(self._mixed_down, self._decoder.blocks())
            return
        stream = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
        for frames in self._decoder.blocks():
            yield stream.resample_chunk(self._mixed_down(frames))
        yield stream.resample_chunk(np.empty(0, np.float32), last=True)

    def _mixed_down(self, frames: np.ndarray) -> np.ndarray:
        """(n, channels) float32 -> (n,) float32, the mean of the channels; RecordingError if not finite."""
        with np.errstate(invalid="ignore", over="ignore"):
            mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1)
        if not np.abs(mono).max(initial=0.0) <= LOUDEST:  # false for NaN too
            raise RecordingError(
                f"{self.path} contains samples that are not numbers (NaN or infinite). Export it again from "
                "the program that made it."
            )
        return mono

    def _check_enough(self) -> None:
        heard = self.samples_read / SAMPLING_RATE
        if self.samples_read == 0:
            raise RecordingError(f"{self.path} holds no sound to decode. Record or export it again.")
        if heard < SHORTEST_SECONDS:
            raise RecordingError(
                f"{self.path} holds only {heard:.3f} s of sound. Give a recording of at least {SHORTEST_SECONDS} s."
            )

    def _note_shortfall(self) -> None:
        heard, declared = self.samples_read / SAMPLING_RATE, self.info.seconds
        if declared is not None and declared - heard > _MISSING_SECONDS + 1e-3 * declared:
            self.warnings.append(
                f"{self.path.name} is damaged or cut short: it declares {declared:.1f} s of sound, of which "
                f"only the {heard:.1f} s that can be read were heard."
            )
        elif self._decoder.damaged:
            self.warnings.append(
                f"{self.path.name} is damaged: decoding ended with an error after {heard:.1f} s, and what "
                "may follow was not heard."
            )
