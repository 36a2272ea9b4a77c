"""From groups of windows to speech tokens with their times: the two ways that a checkpoint can hear.

With an adapter, tokens come from the encoder's frames at a constant rate. With a recogniser, they are the decoder's own
embeddings of recognised words, and none come where nobody speaks. It drives a backend and knows no intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from speech_xl.backend import Backend, State
from speech_xl.config import CONV_STRIDE, HOP_LENGTH, SAMPLING_RATE, ModelConfig
from speech_xl.prefetch import HeardWindows
from speech_xl.prompt import Prompt
from speech_xl.recognition import Word, load_recognizer_tokenizer
from speech_xl.word_reader import Earlier, WordReader


@dataclass(frozen=True)
class SpeechTokens:
    """What a group of windows added to a state's queue: n speech tokens."""

    times: np.ndarray  # (n, 2) float32: start and end in seconds of the recording
    words: list[tuple[int, Word]] | None  # each word's first token among these, and the word; None: no words are known
    seconds: float  # how far the recording has been heard


class Part(NamedTuple):
    """One recording's next group of windows."""

    state: State  # where its tokens are queued
    group: HeardWindows
    earlier: Earlier  # words of the recording that were read before


class FrontEnd(Protocol):
    """Hears groups of windows of several recordings as one batch."""

    def hear(self, parts: Sequence[Part]) -> list[SpeechTokens]:
        """Queue each group's speech tokens in its state. The caller holds the model's lock."""


def make_front_end(folder: Path, config: ModelConfig, prompt: Prompt, backend: Backend) -> FrontEnd:
    """The checkpoint's way of hearing; CheckpointError if a recogniser's tokenizer is absent or broken."""
    recognizer = config.recognizer
    if recognizer is None:
        return FrameFrontEnd(backend, config)
    tokenizer = load_recognizer_tokenizer(folder, recognizer.vocab_size)
    return RecognizerFrontEnd(backend, WordReader(backend, tokenizer, recognizer), prompt)


class FrameFrontEnd:
    """Speech tokens from frames, at a constant rate."""

    def __init__(self, backend: Backend, config: ModelConfig):
        self._backend, self._config = backend, config

    def hear(self, parts: Sequence[Part]) -> list[SpeechTokens]:
        config = self._config
        windows = [w for part in parts for w in part.group.windows]
        positions = [
            config.encoder.context_positions + -(-w.valid_samples // (HOP_LENGTH * CONV_STRIDE)) for w in windows
        ]
        valid = np.minimum(np.array(positions, np.int64), config.encoder.max_source_positions)
        mel = np.stack([w.mel for w in windows if w.mel is not None])  # only a recogniser's windows can be silent
        counts = [[config.tokens_of_window(w.valid_samples) for w in part.group.windows] for part in parts]
        self._backend.hear([(part.state, own) for part, own in zip(parts, counts, strict=True)], mel, valid)
        return [self._tokens(part.group, sum(own)) for part, own in zip(parts, counts, strict=True)]

    def _tokens(self, group: HeardWindows, count: int) -> SpeechTokens:
        first = group.windows[0].index * self._config.tokens_per_window
        edges = np.arange(first, first + count + 1) * self._config.seconds_per_token
        edges = np.minimum(edges, group.end_sample / SAMPLING_RATE)  # the last token may reach past the last sample
        return SpeechTokens(np.stack([edges[:-1], edges[1:]], axis=1).astype(np.float32), None, float(edges[-1]))


class RecognizerFrontEnd:
    """Speech tokens from recognised words."""

    def __init__(self, backend: Backend, reader: WordReader, prompt: Prompt):
        self._backend, self._reader, self._prompt = backend, reader, prompt

    def hear(self, parts: Sequence[Part]) -> list[SpeechTokens]:
        read = self._reader.read([(part.group.windows, part.earlier) for part in parts])
        return [self._tokens(part, words) for part, words in zip(parts, read, strict=True)]

    def _tokens(self, part: Part, read: Sequence[Sequence[Word]]) -> SpeechTokens:
        words: list[Word] = []
        group = part.group
        start = group.end_sample - sum(w.valid_samples for w in group.windows)
        for window, found in zip(group.windows, read, strict=True):
            shift = start / SAMPLING_RATE
            words += [Word(w.text, round(shift + w.start, 3), round(shift + w.end, 3)) for w in found]
            start += window.valid_samples
        ids, times, firsts = word_tokens(words, self._prompt)
        if ids:
            self._backend.hear_words(part.state, ids)
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
