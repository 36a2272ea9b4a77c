"""Decoding and log-mel features on a thread of their own, a few windows ahead of the device.

It turns a file into groups of encoder windows. Groups are always cut at the same places, however the audio
arrives, so that the same recording gives the same numbers to the last bit.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_xl.audio import AudioReader, RecordingInfo
from speech_xl.config import HOP_LENGTH, SAMPLING_RATE, ModelConfig
from speech_xl.decoders import SoundSource
from speech_xl.features import Window, WindowStream
from speech_xl.quiet_windows import BLOCK, QuietWindowStream
from speech_xl.word_reader import group_size

SECONDS_PER_GROUP = 30.0  # of audio in one encoder call: enough to keep two cores busy
GROUPS_AHEAD = 2


@dataclass(frozen=True)
class HeardWindows:
    """A group of windows for one encoder call."""

    windows: list[Window]
    end_sample: int  # of the recording, behind the last window's middle part
    energy: np.ndarray  # float32: mean square of each `Levels` block that ended since the group before


class WindowReader:
    """Iterates over the window groups of a file, once. RecordingError comes from the constructor or the loop."""

    def __init__(self, path: Path | SoundSource, config: ModelConfig):
        self._config = config
        self._audio = AudioReader(path)
        self.info: RecordingInfo = self._audio.info
        self.warnings: list[str] = []
        self.sha256 = ""  # of the file's bytes; known when the first group is
        self._groups: queue.Queue[HeardWindows | BaseException | None] = queue.Queue(GROUPS_AHEAD)
        self._stop = threading.Event()
        self._starting = threading.Lock()  # who closes must know whether the thread has the recording
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """End the thread and the decoder, and wait for that; safe to call at any time, more than once, from any thread."""
        with self._starting:
            self._stop.set()
            if self._thread is None:
                self._audio.close()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join()

    def __iter__(self) -> Iterator[HeardWindows]:
        with self._starting:
            if self._thread is not None:
                raise RuntimeError("this recording was read before; use a new WindowReader to read it again")
            if self._stop.is_set():
                return
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
            self.sha256 = self._audio.sha256  # first: the file may be gone at the end
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

    def _group_size(self, number: int) -> int:
        """Windows in group `number`."""
        encoder = self._config.encoder
        times = group_size(number)
        if self._config.recognizer is not None:
            return times
        windows = max(1, round(SECONDS_PER_GROUP * SAMPLING_RATE / (encoder.hop_frames * HOP_LENGTH)))
        stand_alone = self._config.sst is not None and self._config.sst.horizon == 0
        return windows * times if stand_alone else windows  # intervals that stand alone become larger batches

    def _read_groups(self) -> None:
        has_recognizer = self._config.recognizer is not None
        stream = QuietWindowStream(self._config.encoder) if has_recognizer else WindowStream(self._config.encoder)
        levels, waiting, number, end = Levels(samples_per_level(self._config)), [], 0, 0
        for block in itertools.chain(self._audio, [None]):  # None: the recording's end
            if self._stop.is_set():
                return
            if block is None:
                levels.finish()
                waiting += stream.finish()
            else:
                levels.push(block)
                waiting += stream.push(block)
            while len(waiting) >= (size := self._group_size(number)) or (waiting and block is None):
                windows, waiting = waiting[:size], waiting[size:]
                end += sum(w.valid_samples for w in windows)
                is_last = block is None and not waiting
                if not self._put(HeardWindows(windows, end, levels.take(end, is_last))):
                    return
                number += 1


def samples_per_level(config: ModelConfig) -> int:
    """Samples whose mean square is one number: those of a speech token where all have the same length, else 50 ms."""
    return BLOCK if config.adapter is None else config.frames_per_token * HOP_LENGTH


class Levels:
    """Mean square of each block of `size` samples of a recording."""

    def __init__(self, size: int):
        self._size = size
        self._rest = np.zeros(0, np.float32)
        self._done: list[np.ndarray] = []
        self._taken = 0

    def push(self, samples: np.ndarray) -> None:
        """Take the next samples (n,) float32."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // self._size * self._size
        self._done.append(np.square(samples[:whole]).reshape(-1, self._size).mean(1))
        self._rest = samples[whole:]

    def finish(self) -> None:
        """Close the last stretch, however short it is."""
        if len(self._rest):
            self._done.append(np.square(self._rest).mean(keepdims=True))

    def take(self, end_sample: int, is_last: bool) -> np.ndarray:
        """The blocks, not taken before, that end until `end_sample`; all that are left if it is the last time. float32"""
        joined = np.concatenate(self._done) if self._done else np.zeros(0, np.float32)
        count = len(joined) if is_last else end_sample // self._size - self._taken
        self._done, self._taken = [joined[count:]], self._taken + count
        return joined[:count]
