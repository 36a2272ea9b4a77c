"""16 kHz samples to log-mel windows, streaming, in the numbers that Whisper's encoders were trained on.

A window is cut from the samples and transformed alone, so its numbers depend neither on how the recording
arrived in blocks nor on the rest of it, and are those of transformers' WhisperFeatureExtractor for the
same samples. This file knows EncoderConfig's window geometry; it does not know speech tokens or intervals,
and opens no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.sparse

from speech_xl.config import HOP_LENGTH, N_FFT, EncoderConfig
from speech_xl.mel_filters import mel_filters

_FLOOR = 1e-10  # power; digital silence has a logarithm
_RANGE = 8.0  # powers of ten below a window's maximum that are kept


@dataclass(frozen=True)
class Window:
    """One window of a recording for the encoder.

    Attributes: `index` from 0; `mel` (num_mel_bins, window_frames) float32, context included, or None
    where a recogniser need not listen (quiet_windows.py); `valid_samples`, how many of the recording's samples lie in
    the kept middle part, 1 to hop_frames * 160.
    """

    index: int
    mel: np.ndarray | None
    valid_samples: int


class WindowStream:
    """Cut a recording that arrives in blocks into log-mel windows.

    Window i covers the samples [(i * hop - context) * 160, ((i + 1) * hop + context) * 160), zeros outside
    the recording. It is given out once all its samples have arrived, or by `finish()`. Memory is one window
    of samples. Use one stream per recording.
    """

    def __init__(self, encoder: EncoderConfig) -> None:
        self._num_mel_bins = encoder.num_mel_bins
        self._hop = encoder.hop_frames * HOP_LENGTH
        self._window = np.zeros(encoder.window_frames * HOP_LENGTH, np.float32)
        self._filled = encoder.context_frames * HOP_LENGTH  # silence before the recording
        self._index = 0
        self._received = 0
        self._finished = False

    def push(self, samples: np.ndarray) -> list[Window]:
        """Take the next (n,) samples, any n; return the windows that they complete, often none."""
        if self._finished:
            raise RuntimeError("this stream is finished; use a new WindowStream for another recording")
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be (n,), not {samples.shape}")
        self._received += len(samples)
        windows = []
        while len(samples):
            taken = min(len(samples), len(self._window) - self._filled)
            self._window[self._filled : self._filled + taken] = samples[:taken]
            samples, self._filled = samples[taken:], self._filled + taken
            if self._filled == len(self._window):
                windows.append(self._emit(self._hop))
        return windows

    def finish(self) -> list[Window]:
        """The recording is over: return the windows that remain, their missing samples zero."""
        self._finished = True
        windows = []
        while (remaining := self._received - self._index * self._hop) > 0:
            self._window[self._filled :] = 0.0
            windows.append(self._emit(min(remaining, self._hop)))
        return windows

    def _emit(self, valid_samples: int) -> Window:
        """Transform the current window and move on by one hop."""
        window = Window(self._index, log_mel(self._window, self._num_mel_bins)[0], valid_samples)
        self._index += 1
        self._filled = max(self._filled - self._hop, 0)
        self._window[: -self._hop] = self._window[self._hop :].copy()
        return window


def log_mel(samples: np.ndarray, num_mel_bins: int) -> np.ndarray:
    """Whisper's log-mel spectrogram of each row, with a maximum of its own.

    Parameters
    ----------
    samples : (n,) or (B, n) float32
        16 kHz samples, n > 200.
    num_mel_bins : int
        80, or 128 since Whisper large-v3.

    Returns
    -------
    (B, num_mel_bins, n // 160) float32, B = 1 for (n,) samples

    Raises
    ------
    ValueError
        If the shape is another, or n is too short to be mirrored at the edges.
    """
    samples = np.atleast_2d(np.asarray(samples, np.float32))
    if samples.ndim != 2 or samples.shape[1] <= N_FFT // 2:
        raise ValueError(f"samples must be (n,) or (B, n) with n > {N_FFT // 2}, not {samples.shape}")
    frames = samples.shape[1] // HOP_LENGTH  # Whisper drops the frame centred on the end
    padded = np.pad(samples, ((0, 0), (N_FFT // 2, N_FFT // 2)), mode="reflect")
    cut = np.lib.stride_tricks.sliding_window_view(padded, N_FFT, axis=1)[:, ::HOP_LENGTH][:, :frames]
    spectrum = scipy.fft.rfft(cut * _hann(), axis=-1, overwrite_x=True)  # (B, T, 201) complex64
    power = spectrum.real**2 + spectrum.imag**2
    mel = _sparse_filters(num_mel_bins) @ power.reshape(-1, power.shape[-1]).T  # (num_mel_bins, B * T)
    mel = np.ascontiguousarray(mel.reshape(num_mel_bins, len(power), -1).swapaxes(0, 1))
    log: np.ndarray = np.log10(np.maximum(mel, _FLOOR, out=mel), out=mel)
    np.maximum(log, log.max(axis=(1, 2), keepdims=True) - _RANGE, out=log)
    log += 4.0
    log /= 4.0
    return log


@lru_cache(maxsize=4)
def _sparse_filters(num_mel_bins: int) -> scipy.sparse.csr_array:
    """The mel filters, of which one number in forty is not zero.

    A dense product would go through numpy's BLAS, whose threads wait for work by spinning, and so take the cores from
    the model that runs beside this.
    """
    return scipy.sparse.csr_array(mel_filters(num_mel_bins))


@lru_cache(maxsize=1)
def _hann() -> np.ndarray:
    """The periodic Hann window, (400,) float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
