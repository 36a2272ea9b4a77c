"""A recording cut where it is quietest, into windows for a model that reads words.

Whisper hears 30 s at a time, and a word that a cut halves is read twice or not at all. So a window ends at the
quietest place of its last seconds and is filled up with silence. Where cuts fall depends on the samples alone, not
on how the recording arrived in blocks. This file knows samples; it opens no files and knows no words.
"""

from __future__ import annotations

import numpy as np

from speech_xl.config import HOP_LENGTH, EncoderConfig
from speech_xl.features import Window, log_mel

LONGEST = 14 / 15  # of an encoder's window that sound may fill: 28 s of Whisper's 30
SEARCHED = 4 / 15  # of an encoder's window, at the end of the sound, where the cut is looked for: 8 s
BLOCK = 800  # samples: 50 ms
QUIET_BLOCKS = 4  # a place is 200 ms long: longer than the stops inside a word
SILENCE = 1e-6  # mean square, -60 dB of full scale: where no 200 ms are louder, nobody speaks


class QuietWindowStream:
    """Cut a recording that arrives in blocks into log-mel windows that follow one another without overlap.

    A window's `valid_samples` are its own, at most 28 s; `mel` is None where all of it is silent. Memory is one window
    of samples. Use one stream per recording.
    """

    def __init__(self, encoder: EncoderConfig) -> None:
        self._encoder = encoder
        size = encoder.window_frames * HOP_LENGTH
        self._window = np.zeros(size, np.float32)
        self._longest, self._searched = int(size * LONGEST), int(size * SEARCHED)
        self._filled = 0
        self._index = 0

    def push(self, samples: np.ndarray) -> list[Window]:
        """Take the next (n,) samples, any n; return the windows that they complete, often none."""
        windows = []
        while len(samples):
            if self._filled == self._longest:  # more follows: this is not the recording's end
                windows.append(self._emit(self._quietest()))
            taken = min(len(samples), self._longest - self._filled)
            self._window[self._filled : self._filled + taken] = samples[:taken]
            samples, self._filled = samples[taken:], self._filled + taken
        return windows

    def finish(self) -> list[Window]:
        """The recording is over: return the window that remains, if any."""
        return [self._emit(self._filled)] if self._filled else []

    def _quietest(self) -> int:
        """The sample to cut at: the middle of the last of the quietest places in the searched part."""
        first = self._longest - self._searched
        places = _loudness(self._window[first : self._longest])
        quietest = len(places) - 1 - int(np.argmin(places[::-1]))
        return first + quietest * BLOCK + QUIET_BLOCKS * BLOCK // 2

    def _emit(self, cut: int) -> Window:
        """The window of the samples before `cut`; those behind it wait for the next one."""
        window = lone_window(self._window[:cut], self._encoder, self._index)
        self._index += 1
        self._filled -= cut
        self._window[: self._filled] = self._window[cut : cut + self._filled].copy()
        return window


def lone_window(samples: np.ndarray, encoder: EncoderConfig, index: int = 0) -> Window:
    """(n,) float32, at most an encoder's window, as a window of its own: filled up with silence, no context."""
    alone = np.zeros(encoder.window_frames * HOP_LENGTH, np.float32)
    alone[: len(samples)] = samples
    is_silent = _loudness(samples).max() < SILENCE
    return Window(index, None if is_silent else log_mel(alone, encoder.num_mel_bins)[0], len(samples))


def _loudness(samples: np.ndarray) -> np.ndarray:
    """Mean square of every 200 ms, one place each 50 ms, at least one: (n // 800 - 3,) float64 for (n,) float32."""
    shortest = QUIET_BLOCKS * BLOCK
    if len(samples) < shortest:
        return np.array([np.square(samples, dtype=np.float64).mean()])
    blocks = np.square(samples[: len(samples) // BLOCK * BLOCK], dtype=np.float64).reshape(-1, BLOCK).sum(1)
    return np.convolve(blocks, np.ones(QUIET_BLOCKS), mode="valid") / shortest
