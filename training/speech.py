"""The speech of a batch as the network takes it: word ids, encoder outputs from disk, or windows to be heard.

It knows samples and padding; no schedule, no network.

Letters: B recordings, N speech tokens, W encoder windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from speech_xl.config import ModelConfig
from training.samples import Sample
from training.sound import augment, encoder_windows, read_samples


class Speech(NamedTuple):
    """`rows` is one of three: ids of heard words (B, N) int64; encoder outputs (B, N * stack, d_model) float32; or, with
    `windows`, places (B, N * stack) int64 in the outputs of all windows one after another.

    `windows` is mel (W, num_mel_bins, T) float32 and valid positions (W,) int64.
    """

    rows: np.ndarray
    windows: tuple[np.ndarray, np.ndarray] | None = None


def pad_speech(samples: Sequence[Sample], config: ModelConfig, augmentation: float, seed: Sequence[int]) -> Speech:
    """The speech of some samples of one kind. `augmentation` and `seed` matter to sound only."""
    b, longest = len(samples), max(s.tokens for s in samples)
    if samples[0].words is not None:
        ids = np.zeros((b, longest), np.int64)
        for i, sample in enumerate(samples):
            ids[i, : sample.tokens] = sample.words
        return Speech(ids)
    stack = config.adapter.stack
    if samples[0].features is not None:
        outputs = np.zeros((b, longest * stack, config.encoder.d_model), np.float32)
        for i, sample in enumerate(samples):
            outputs[i, : sample.tokens * stack] = np.load(sample.features)
        return Speech(outputs)
    rows, mels, valids, before = np.zeros((b, longest * stack), np.int64), [], [], 0
    for i, sample in enumerate(samples):
        sound = read_samples(sample.source)
        if augmentation:
            drawn = np.random.default_rng([*seed, i]).integers(2**32)
            sound = augment(sound, augmentation, int(drawn))
        mel, valid, tokens = encoder_windows(sound, config)
        per_window = config.tokens_per_window * stack
        places = [before + w * per_window + np.arange(count * stack) for w, count in enumerate(tokens)]
        rows[i, : sample.tokens * stack] = np.concatenate(places)
        mels.append(mel)
        valids.append(valid)
        before += len(mel) * per_window
    return Speech(rows, (np.concatenate(mels), np.concatenate(valids)))
