"""A recording's windows read as words, several at a time, each with words that were read before as a prompt.

Whisper is trained to go on from earlier text: with it, short announcements at the start of a window are dropped
less often, and numbers and names keep their spelling. The prompt is the same for all windows of a group, so they
can be read at once; the first group is a single window. This file knows no files and no decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from speech_xl.backend import Backend, Recognition
from speech_xl.config import SAMPLING_RATE, RecognizerConfig
from speech_xl.features import Window
from speech_xl.recognition import LEAST_LOG_PROB, Word, is_loop, words_of

LARGEST_GROUP = 4  # windows that are read at once: the recogniser's weights are read once for all of them
PROMPT_TOKENS = 48  # of words read before: more did not help
PROMPT_SHARE = 8  # ... and at most one in so many of the recogniser's positions, which its text needs


def group_size(number: int) -> int:
    """Windows in group `number` of a recording: the first words come soon."""
    return min(number + 1, LARGEST_GROUP)


def prompt_tokens(config: RecognizerConfig) -> int:
    """The most tokens of earlier words that stand before a window's."""
    return min(PROMPT_TOKENS, config.max_target_positions // PROMPT_SHARE)


class WordReader:
    """Reads the windows of one recording, in order."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, config: RecognizerConfig) -> None:
        self._backend, self._tokenizer, self._config = backend, tokenizer, config
        self._before: list[str] = []  # words that were read last

    def read(self, windows: Sequence[Window]) -> list[list[Word]]:
        """The words of each window, times from its own start; none of a silent one. The caller holds the model's lock."""
        mels = [w.mel for w in windows if w.mel is not None]
        if not mels:
            return [[] for _ in windows]
        mel = np.stack(mels)
        readings = self._backend.recognize(mel, prompt := self._prompt())
        if prompt and (again := [n for n, reading in enumerate(readings) if self._is_lost(reading)]):
            # A prompt can carry a recogniser away; what it reads without one is at least not the prompt's fault.
            for n, reading in zip(again, self._backend.recognize(mel[again]), strict=True):
                readings[n] = reading
        found = iter(readings)
        words: list[list[Word]] = []
        for window in windows:
            if window.mel is None:
                words.append([])
                continue
            reading = next(found)
            own = words_of(reading, self._tokenizer, window.valid_samples / SAMPLING_RATE)
            if own and not self._is_lost(reading):
                self._before = [*self._before, *(word.text for word in own)][-PROMPT_TOKENS:]
            words.append(own)
        return words

    def _prompt(self) -> list[int]:
        if self._config.previous_id is None or not self._before:
            return []
        ids = self._tokenizer.encode(" " + " ".join(self._before), add_special_tokens=False).ids
        return [self._config.previous_id, *ids[-prompt_tokens(self._config) :]]

    def _is_lost(self, reading: Recognition) -> bool:
        return reading.mean_log_prob < LEAST_LOG_PROB or is_loop(self._tokenizer.decode(reading.ids))
