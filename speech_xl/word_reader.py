"""Windows read as words, many at a time, each with words that were read before as a prompt.

Whisper is trained to go on from earlier text: with it, short announcements at the start of a window are dropped
less often, and numbers and names keep their spelling. The prompt is the same for all windows of a group, so they
can be read at once; a recording's first group is a single window. Groups of several recordings are read together
where their prompts have the same length. This file knows no files and no decoder.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from speech_xl.backend import Backend, Recognition
from speech_xl.config import SAMPLING_RATE, RecognizerConfig
from speech_xl.features import Window
from speech_xl.recognition import LEAST_LOG_PROB, Word, is_loop, words_of

LARGEST_GROUP = 4  # windows of a recording that are read at once: weights are read once for all of them
MOST_WINDOWS = 8  # ... of several recordings: their keys and values, 37 MB each with Whisper base, are held meanwhile
PROMPT_TOKENS = 48  # of words read before: more did not help
PROMPT_SHARE = 8  # ... and at most one in so many of the recogniser's positions, which its text needs


def group_size(number: int) -> int:
    """Windows in group `number` of a recording: the first words come soon."""
    return min(number + 1, LARGEST_GROUP)


def prompt_tokens(config: RecognizerConfig) -> int:
    """The most tokens of earlier words that stand before a window's."""
    return min(PROMPT_TOKENS, config.max_target_positions // PROMPT_SHARE)


@dataclass
class Earlier:
    """The words of one recording that were read last."""

    words: deque[str] = field(default_factory=lambda: deque(maxlen=PROMPT_TOKENS))


@dataclass(frozen=True)
class _Unread:
    mel: np.ndarray  # (num_mel_bins, T) float32
    prompt: tuple[int, ...]


class WordReader:
    """Reads groups of windows, those of one recording in order."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, config: RecognizerConfig) -> None:
        self._backend, self._tokenizer, self._config = backend, tokenizer, config

    def read(self, groups: Sequence[tuple[Sequence[Window], Earlier]]) -> list[list[list[Word]]]:
        """For each group the words of each window, times from its own start; none of a silent one.

        The groups are of different recordings, each with its earlier words, which go on with what is read. The caller
        holds the model's lock.
        """
        prompts = [self._prompt(earlier) for _, earlier in groups]
        unread = [
            _Unread(w.mel, prompt)
            for (windows, _), prompt in zip(groups, prompts, strict=True)
            for w in windows
            if w.mel is not None
        ]
        readings = self._recognize(unread)
        again = [n for n, reading in enumerate(readings) if unread[n].prompt and self._is_lost(reading)]
        # A prompt can carry a recogniser away; what it reads without one is at least not the prompt's fault.
        alone = self._recognize([_Unread(unread[n].mel, ()) for n in again])
        for n, reading in zip(again, alone, strict=True):
            readings[n] = reading
        found = iter(readings)
        return [[self._words(w, found, earlier) for w in windows] for windows, earlier in groups]

    def _words(self, window: Window, found: Iterator[Recognition], earlier: Earlier) -> list[Word]:
        if window.mel is None:
            return []
        reading = next(found)
        words = words_of(reading, self._tokenizer, window.valid_samples / SAMPLING_RATE)
        if words and not self._is_lost(reading):
            earlier.words.extend(word.text for word in words)
        return words

    def _recognize(self, unread: Sequence[_Unread]) -> list[Recognition]:
        """A reading of each, those with prompts of the same length together."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for number, window in enumerate(unread):
            numbers[len(window.prompt)].append(number)
        readings: dict[int, Recognition] = {}
        for same in numbers.values():
            for at in range(0, len(same), MOST_WINDOWS):
                part = same[at : at + MOST_WINDOWS]
                mel = np.stack([unread[n].mel for n in part])
                read = self._backend.recognize(mel, [unread[n].prompt for n in part])
                readings |= zip(part, read, strict=True)
        return [readings[number] for number in range(len(unread))]

    def _prompt(self, earlier: Earlier) -> tuple[int, ...]:
        if self._config.previous_id is None or not earlier.words:
            return ()
        ids = self._tokenizer.encode(" " + " ".join(earlier.words), add_special_tokens=False).ids
        return (self._config.previous_id, *ids[-prompt_tokens(self._config) :])

    def _is_lost(self, reading: Recognition) -> bool:
        return reading.mean_log_prob < LEAST_LOG_PROB or is_loop(self._tokenizer.decode(reading.ids))
