"""The sound of a line of training data: samples, encoder windows, and other rooms and microphones to hear it in.

It knows audio files and windows; no network, no text.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np

from speech_xl.audio import AudioReader
from speech_xl.config import CONV_STRIDE, HOP_LENGTH, SAMPLING_RATE, ModelConfig
from speech_xl.errors import RecordingError
from speech_xl.features import WindowStream
from training.data import DataError, Recording


def read_samples(recording: Recording) -> np.ndarray:
    """(n,) float32 at 16 kHz of a line's part of its file; DataError names the line where there is none."""
    first = round(recording.start * SAMPLING_RATE)
    stop = None if recording.end is None else round(recording.end * SAMPLING_RATE)
    pieces, at = [], 0
    try:
        with AudioReader(recording.audio) as blocks:
            for block in blocks:
                pieces.append(block[max(0, first - at) : None if stop is None else max(0, stop - at)])
                at += len(block)
                if stop is not None and at >= stop:
                    break
    except RecordingError as error:
        raise DataError(f"{recording.where}: {error}") from None
    samples = np.concatenate([np.zeros(0, np.float32), *pieces])
    if not len(samples):
        raise DataError(
            f"{recording.where}: {recording.audio} is {at / SAMPLING_RATE:g} s long, so nothing is left from "
            f"{recording.start:g} s; correct start."
        )
    return samples


def encoder_windows(samples: np.ndarray, config: ModelConfig) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(n,) samples -> mel (B, num_mel_bins, T) float32, valid positions (B,) int64, speech tokens of each window."""
    stream = WindowStream(config.encoder)
    windows = [*stream.push(samples), *stream.finish()]
    context, most = config.encoder.context_positions, config.encoder.max_source_positions
    valid = [min(most, context + -(-w.valid_samples // (HOP_LENGTH * CONV_STRIDE))) for w in windows]
    tokens = [config.tokens_of_window(w.valid_samples) for w in windows]
    return np.stack([w.mel for w in windows]), np.array(valid, np.int64), tokens


def augment(samples: np.ndarray, strength: float, seed: int) -> np.ndarray:
    """The same words in another room, through another microphone: (n,) float32 of the same length.

    strength: 0 changes nothing, at 1 most samples are changed in several ways. The same seed changes the same.
    """
    states = random.getstate(), np.random.get_state()
    random.seed(seed)  # audiomentations draws from these two
    np.random.seed(seed % 2**32)
    try:
        return _distortions(strength)(samples.astype(np.float32), sample_rate=SAMPLING_RATE).astype(np.float32)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@lru_cache(maxsize=4)
def _distortions(strength: float) -> Any:
    import audiomentations as am

    return am.Compose(
        [
            am.SevenBandParametricEQ(min_gain_db=-12 * strength, max_gain_db=12 * strength, p=0.7 * strength),
            am.LowPassFilter(min_cutoff_freq=2500, max_cutoff_freq=6000, p=0.3 * strength),
            am.AddColorNoise(min_snr_db=40 - 32 * strength, max_snr_db=40, p=0.7 * strength),
            am.ClippingDistortion(max_percentile_threshold=5, p=0.1 * strength),
            am.Gain(min_gain_db=-18 * strength, max_gain_db=5 * strength, p=strength),
        ]
    )
