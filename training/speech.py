"""The speech of a pass as the network takes it: word ids, encoder outputs from disk, or windows to be heard.

Recordings stand one after another, without padding. It knows samples; no schedule, no network.

Letters: N speech tokens of all recordings of a pass, W encoder windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speech_xl.config import ModelConfig
from training.samples import Sample
from training.sound import augment, encoder_windows, read_samples


class Speech(NamedTuple):
    """`rows` is one of three: ids of heard words (N,) int64; encoder outputs (N * stack, d_model) float32; or, with
    `windows`, places (N * stack,) int64 in the outputs of all windows one after another.

    `windows` is mel (W, num_mel_bins, T) float32 and valid positions (W,) int64.
    """

    rows: np.ndarray
    windows: tuple[np.ndarray, np.ndarray] | None = None


def join_speech(
    samples: Sequence[Sample], config: ModelConfig, augmentation: float = 0.0, seeds: Sequence[Sequence[int]] = ()
) -> Speech:
    """The speech of some samples of one kind. `augmentation`, and a seed for each sample, matter to sound only."""
    if samples[0].words is not None:
        return Speech(np.concatenate([sample.words for sample in samples]).astype(np.int64))
    stack = config.adapter.stack
    if samples[0].features is not None:
        return Speech(np.concatenate([np.load(sample.features) for sample in samples]).astype(np.float32))
    rows, mels, valids, before = [], [], [], 0
    for i, sample in enumerate(samples):
        sound = read_samples(sample.source)
        if augmentation:
            sound = augment(sound, augmentation, int(np.random.default_rng(seeds[i]).integers(2**32)))
        mel, valid, tokens = encoder_windows(sound, config)
        per_window = config.tokens_per_window * stack
        rows += [before + w * per_window + np.arange(count * stack) for w, count in enumerate(tokens)]
        mels.append(mel)
        valids.append(valid)
        before += len(mel) * per_window
    return Speech(np.concatenate(rows), (np.concatenate(mels), np.concatenate(valids)))
