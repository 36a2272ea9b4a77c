"""From what a recogniser read in one window to words with their times.

It knows token ids, attention and text; no tensors, and no recording beyond the window. When a reading counts as
silence, and how times come out of attention, are Whisper's rules (arXiv 2212.04356, section 4.5, and
openai/whisper's timing.py); a reading that goes round in circles is cut.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter
from tokenizers import Tokenizer

from speech_xl.backend import Recognition
from speech_xl.config import CONV_STRIDE, HOP_LENGTH, SAMPLING_RATE
from speech_xl.tokenizer_file import load_tokenizer

NO_SPEECH = 0.6  # probability from which a window is silent, ...
LEAST_LOG_PROB = -1.0  # ... unless its words were surer than this
MOST_COMPRESSION = 2.4  # zlib shrinks a loop further than any talk
REPEATS, REPEATS_IN_LOOP = 6, 3  # times that the same words follow one another before they count as a loop
SMOOTHED = 7  # encoder positions: the median of this many is taken before words are placed
POSITIONS_PER_SECOND = SAMPLING_RATE / (HOP_LENGTH * CONV_STRIDE)


@dataclass(frozen=True)
class Word:
    """A recognised word, punctuation included, and when it was said."""

    text: str
    start: float  # seconds
    end: float


def load_recognizer_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """`folder`/recognizer_tokenizer.json; CheckpointError if it is absent, broken or of another vocabulary."""
    return load_tokenizer(folder, "recognizer_tokenizer.json", "recognizer", vocab_size)


def words_of(recognition: Recognition, tokenizer: Tokenizer, seconds: float) -> list[Word]:
    """The words of a window that holds `seconds` of sound, times from the window's start; none where nobody speaks."""
    is_silent = recognition.no_speech > NO_SPEECH and recognition.mean_log_prob < LEAST_LOG_PROB
    if is_silent or not recognition.ids:
        return []
    positions = max(1, min(recognition.attention.shape[1], int(np.ceil(seconds * POSITIONS_PER_SECOND))))
    starts = token_starts(recognition.attention[:, :positions]) / POSITIONS_PER_SECOND
    ends = np.append(starts[1:], seconds)[: len(recognition.ids)]
    words: list[Word] = []
    for text, first, last in split_words(recognition.ids, tokenizer):
        start, end = float(starts[first]), min(float(ends[last]), seconds)
        longest = 0.4 + 0.1 * len(text)  # seconds that even slow talk takes: what is more is a pause
        if not words:  # before the first word the pause lies before it
            start = max(start, end - longest)
        words.append(Word(text, start, min(end, start + longest)))
    return without_loops(words)


def token_starts(attention: np.ndarray) -> np.ndarray:
    """The position where each token starts, (T,) int64, never decreasing, from attention (T, S) float32.

    Every position belongs to the token that looks at it more than others do, in order: dynamic time warping, one row
    of the table at a time.
    """
    spread = attention.std(axis=0, keepdims=True)
    looks = (attention - attention.mean(axis=0, keepdims=True)) / np.maximum(spread, 1e-8)
    looks = median_filter(looks, size=(1, SMOOTHED)).astype(np.float64)
    tokens, positions = looks.shape
    index = np.arange(positions)
    best = np.full(positions, -np.inf)
    entered = np.zeros((tokens, positions), np.int64)  # where the path that stands at a position came into the row
    came_along = np.zeros(
        (tokens, positions), bool
    )  # it came from the same position of the row before, not the one before
    for row, scores in enumerate(looks):
        before = np.append(-np.inf, best[:-1])
        came_along[row] = best > before
        enter = np.maximum(best, before)
        if row == 0:
            enter[0] = 0.0
        total = np.cumsum(scores)
        gain = enter + scores - total
        most = np.maximum.accumulate(gain)
        entered[row] = np.maximum.accumulate(np.where(gain == most, index, 0))
        best = most + total
    starts, at = np.zeros(tokens, np.int64), positions - 1
    for row in range(tokens - 1, -1, -1):
        starts[row] = entered[row, at]
        at = starts[row] if came_along[row, starts[row]] else starts[row] - 1
    return starts


def split_words(ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[str, int, int]]:
    """(word, its first token, its last) for everything between blanks; broken characters and bare marks are left out."""
    text = tokenizer.decode(list(ids))
    # How far the text reaches after each token; half a character reaches nowhere yet.
    texts = (tokenizer.decode(list(ids[: n + 1])) for n in range(len(ids)))
    reach = np.maximum.accumulate([len(heard.rstrip("\N{REPLACEMENT CHARACTER}")) for heard in texts])
    words, at = [], 0
    for piece in text.split():
        begin = text.index(piece, at)
        at = begin + len(piece)
        word = piece.replace("\N{REPLACEMENT CHARACTER}", "")
        if any(c.isalnum() for c in word):
            first, last = np.searchsorted(reach, [begin, at - 1], side="right").clip(0, len(ids) - 1).tolist()
            words.append((word, first, last))
    return words


def is_loop(text: str) -> bool:
    """Whether a text repeats itself more than talk does."""
    data = text.encode()
    return len(data) / max(1, len(zlib.compress(data))) > MOST_COMPRESSION


def without_loops(words: Sequence[Word]) -> list[Word]:
    """The words, of the same few again and again only the first time."""
    least = REPEATS_IN_LOOP if is_loop(" ".join(word.text for word in words)) else REPEATS
    plain = ["".join(c for c in word.text.lower() if c.isalnum()) for word in words]
    kept: list[Word] = []
    at = 0
    while at < len(words):
        size, repeats = _repeated(plain[at:], least)
        kept += words[at : at + size]
        at += size * repeats
    return kept


def _repeated(words: list[str], least: int) -> tuple[int, int]:
    """-> (how many words at the start, how often they follow one another); (1, 1) if less than `least` times."""
    for size in range(1, len(words) // least + 1):
        repeats = 1
        while words[repeats * size : (repeats + 1) * size] == words[:size]:
            repeats += 1
        if repeats >= least:
            return size, repeats
    return 1, 1
