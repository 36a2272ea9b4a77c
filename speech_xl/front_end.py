"""From a group of windows to speech tokens with their times: the two ways that a checkpoint can hear.

With an adapter, tokens come from the encoder's frames at a constant rate. With a recogniser, they are the decoder's own
embeddings of recognised words, and none come where nobody speaks. It drives a backend and knows no intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from speech_xl.backend import Backend, State
from speech_xl.config import CONV_STRIDE, HOP_LENGTH, SAMPLING_RATE, ModelConfig
from speech_xl.prefetch import HeardWindows
from speech_xl.prompt import Prompt
from speech_xl.recognition import Word, load_recognizer_tokenizer, words_of


@dataclass(frozen=True)
class SpeechTokens:
    """What a group of windows added to a state's queue: n speech tokens."""

    times: np.ndarray  # (n, 2) float32: start and end in seconds of the recording
    words: list[tuple[int, Word]] | None  # each word's first token among these, and the word; None: no words are known
    seconds: float  # how far the recording has been heard


class FrontEnd(Protocol):
    def hear(self, backend: Backend, state: State, group: HeardWindows) -> SpeechTokens:
        """Queue the group's speech tokens in the state. The caller holds the model's lock."""


def load_front_end(folder: Path, config: ModelConfig, prompt: Prompt) -> FrontEnd:
    """The front end of a checkpoint; CheckpointError if a recogniser's tokenizer is absent or broken."""
    if config.recognizer is None:
        return FrameFrontEnd(config)
    return RecognizerFrontEnd(load_recognizer_tokenizer(folder, config.recognizer.vocab_size), prompt)


class FrameFrontEnd:
    """Speech tokens from frames, at a constant rate."""

    def __init__(self, config: ModelConfig):
        self._config = config

    def hear(self, backend: Backend, state: State, group: HeardWindows) -> SpeechTokens:
        config, windows = self._config, group.windows
        positions = [
            config.encoder.context_positions + -(-w.valid_samples // (HOP_LENGTH * CONV_STRIDE)) for w in windows
        ]
        valid = np.minimum(np.array(positions, np.int64), config.encoder.max_source_positions)
        tokens = [config.tokens_of_window(w.valid_samples) for w in windows]
        backend.hear(state, np.stack([w.mel for w in windows]), valid, tokens)
        first = windows[0].index * config.tokens_per_window
        edges = np.arange(first, first + sum(tokens) + 1) * config.seconds_per_token
        edges = np.minimum(edges, group.end_sample / SAMPLING_RATE)  # the last token may reach past the last sample
        return SpeechTokens(np.stack([edges[:-1], edges[1:]], axis=1).astype(np.float32), None, float(edges[-1]))


class RecognizerFrontEnd:
    """Speech tokens from recognised words. `tokenizer` is the recogniser's."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt):
        self._tokenizer = tokenizer
        self._prompt = prompt

    def hear(self, backend: Backend, state: State, group: HeardWindows) -> SpeechTokens:
        spoken = [w for w in group.windows if w.mel is not None]
        recognitions = iter(backend.recognize(np.stack([w.mel for w in spoken])) if spoken else ())
        words: list[Word] = []
        start = group.end_sample - sum(w.valid_samples for w in group.windows)
        for window in group.windows:
            if window.mel is not None:
                shift, seconds = start / SAMPLING_RATE, window.valid_samples / SAMPLING_RATE
                found = words_of(next(recognitions), self._tokenizer, seconds)
                words += [Word(w.text, round(shift + w.start, 3), round(shift + w.end, 3)) for w in found]
            start += window.valid_samples
        ids, times, firsts = word_tokens(words, self._prompt)
        if ids:
            backend.hear_words(state, ids)
        return SpeechTokens(times, list(zip(firsts, words, strict=True)), group.end_sample / SAMPLING_RATE)


def word_tokens(words: list[Word], prompt: Prompt) -> tuple[list[int], np.ndarray, list[int]]:
    """The decoder's token ids (n,) of words, their times (n, 2) float32, and each word's first token.

    A word is tokenized alone, with a blank before it, so that its ids do not depend on where a window was cut; its
    time is shared among its tokens by their characters.
    """
    ids: list[int] = []
    times: list[tuple[float, float]] = []
    firsts = []
    for word in words:
        firsts.append(len(ids))
        own, ends = prompt.word_ids(word.text)
        edges = word.start + (word.end - word.start) * np.array([0.0, *ends])
        ids += own
        times += zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return ids, np.array(times, np.float32).reshape(-1, 2), firsts
