"""Decoding and log-mel features on a thread of their own, a few windows ahead of the device.

It turns a file into groups of encoder windows. Groups are always cut at the same places, however the audio
arrives, so that the same recording gives the same numbers to the last bit.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_xl.audio import AudioReader, RecordingInfo
from speech_xl.config import HOP_LENGTH, SAMPLING_RATE, ModelConfig
from speech_xl.features import Window, WindowStream

SECONDS_PER_GROUP = 30.0  # of audio in one encoder call: enough to keep two cores busy
GROUPS_AHEAD = 2


@dataclass(frozen=True)
class HeardWindows:
    """A group of B windows for one encoder call."""

    mel: np.ndarray  # (B, num_mel_bins, T) float32
    valid_samples: list[int]  # samples of sound in each window's middle part
    tokens: list[int]  # speech tokens to keep of each window
    energy: np.ndarray  # (sum of tokens,) float32: mean square of each token's sound


class WindowReader:
    """Iterates over the window groups of a file. RecordingError comes from the constructor or the loop."""

    def __init__(self, path: Path, config: ModelConfig):
        self._config = config
        self._audio = AudioReader(path)
        self.info: RecordingInfo = self._audio.info
        self.warnings: list[str] = []
        self._groups: queue.Queue[HeardWindows | BaseException | None] = queue.Queue(GROUPS_AHEAD)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def seconds_read(self) -> float:
        return self._audio.samples_read / SAMPLING_RATE

    def close(self) -> None:
        """End the thread and the decoder; safe to call at any time, more than once, from any thread."""
        self._stop.set()
        if self._thread is None:
            self._audio.close()

    def __iter__(self) -> Iterator[HeardWindows]:
        self._thread = threading.Thread(target=self._read_ahead, name="speech-xl-reader", daemon=True)
        self._thread.start()
        try:
            while (item := self._groups.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stop.set()
            self._thread.join()
            self.warnings = list(self._audio.warnings)

    def _put(self, item: HeardWindows | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._groups.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _read_ahead(self) -> None:
        last: BaseException | None = None
        try:
            self._read_groups()
        except BaseException as error:  # handed to the iterating thread, which raises it
            last = error
        finally:
            self._audio.close()
        if not self._put(last):
            # Closed early: the reader may be waiting for an item that nobody will send.
            while True:
                try:
                    self._groups.put_nowait(None)
                    return
                except queue.Full:
                    self._groups.get_nowait()

    def _read_groups(self) -> None:
        encoder = self._config.encoder
        size = max(1, round(SECONDS_PER_GROUP * SAMPLING_RATE / (encoder.hop_frames * HOP_LENGTH)))
        stream, waiting = WindowStream(encoder), []
        energy = TokenEnergy(self._config.frames_per_token * HOP_LENGTH)
        for block in self._audio:
            if self._stop.is_set():
                return
            energy.push(block)
            waiting += stream.push(block)
            while len(waiting) >= size:
                if not self._put(self._group(waiting[:size], energy)):
                    return
                del waiting[:size]
        waiting += stream.finish()
        energy.finish()
        for start in range(0, len(waiting), size):
            if not self._put(self._group(waiting[start : start + size], energy)):
                return

    def _group(self, windows: list[Window], energy: TokenEnergy) -> HeardWindows:
        tokens = [self._config.tokens_of_window(w.valid_samples) for w in windows]
        mel = np.stack([w.mel for w in windows])
        return HeardWindows(mel, [w.valid_samples for w in windows], tokens, energy.take(sum(tokens)))


class TokenEnergy:
    """Mean square of the samples under each speech token."""

    def __init__(self, samples_per_token: int):
        self._size = samples_per_token
        self._rest = np.zeros(0, np.float32)
        self._done: list[np.ndarray] = []

    def push(self, samples: np.ndarray) -> None:
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // self._size * self._size
        self._done.append(np.square(samples[:whole]).reshape(-1, self._size).mean(1))
        self._rest = samples[whole:]

    def finish(self) -> None:
        if len(self._rest):
            self._done.append(np.square(self._rest).mean(keepdims=True))

    def take(self, tokens: int) -> np.ndarray:
        """The next `tokens` values, (tokens,) float32; zeros stand for padding that has no sound."""
        joined = np.concatenate(self._done) if self._done else np.zeros(0, np.float32)
        self._done = [joined[tokens:]]
        return np.pad(joined[:tokens], (0, max(0, tokens - len(joined))))
