"""Recordings as speech tokens: what is left to do before a step is to draw ratios, questions and positions.

It knows the checkpoint's tokenizer and prompt and where features lie, no network.

Letters: N speech tokens of a recording.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speech_xl.config import ModelConfig
from speech_xl.prompt import Prompt
from training.data import DataError, Question, Recording
from training.sound import read_samples

CHARACTERS_PER_TOKEN = 4  # of English, roughly


@dataclass(frozen=True)
class Sample:
    """One recording. Its questions are text until a step needs them: a run reads few of many.

    Its speech is `words` (N,) int32, ids whose embeddings are the speech tokens; or `features`, a file of encoder
    outputs; or, where the encoder itself is to hear it, the sound of `source`.
    """

    tokens: int  # N
    source: Recording
    words: np.ndarray | None = None
    features: Path | None = None

    @property
    def questions(self) -> tuple[Question, ...]:
        """Those of its line."""
        return self.source.questions

    @property
    def size(self) -> float:
        """Rows that the recording takes, roughly: recordings of like size share a batch."""
        text = sum(len(q.text) + len(q.answer) for q in self.questions) + len(self.source.text or "")
        return self.tokens + text / CHARACTERS_PER_TOKEN

    def window(self, most: int, rng: np.random.Generator) -> Sample:
        """At most so many of its speech tokens, from anywhere. Only for heard words without questions."""
        if self.tokens <= most:
            return self
        first = int(rng.integers(0, self.tokens - most + 1))
        return replace(self, words=self.words[first : first + most], tokens=most)


def heard_samples(recordings: Sequence[Recording], prompt: Prompt) -> list[Sample]:
    """Recordings that a recogniser heard; each word is tokenized alone, behind a blank, as when it is heard."""
    ids_of: dict[str, list[int]] = {}
    samples = []
    for recording in recordings:
        ids: list[int] = []
        for word in recording.heard.split():
            if word not in ids_of:
                ids_of[word] = prompt.word_ids(word)[0]
            ids += ids_of[word]
        samples.append(Sample(len(ids), recording, words=np.array(ids, np.int32)))
    return samples


def encoded_samples(recordings: Sequence[Recording], path: Callable[[Recording], Path], stack: int) -> list[Sample]:
    """Recordings whose encoder outputs lie at `path`."""
    samples = []
    for recording in recordings:
        features = path(recording)
        samples.append(Sample(len(np.load(features, mmap_mode="r")) // stack, recording, features=features))
    return samples


def sound_samples(recordings: Sequence[Recording], config: ModelConfig) -> list[Sample]:
    """Recordings that the encoder hears anew at every step."""
    return [Sample(config.tokens_for(len(read_samples(r))), r) for r in recordings]


def check_length(samples: Sequence[Sample], max_tokens: int) -> tuple[list[Sample], int]:
    """-> the recordings to train on, and how many were left out as silent or longer than `max_tokens`.

    Heard words without questions are never too long: a step takes a window of them.
    """
    kept = [s for s in samples if s.tokens <= max_tokens or (s.words is not None and not s.questions)]
    kept = [s for s in kept if s.tokens]
    if not kept:
        raise DataError(f"No recording has 1 to {max_tokens} speech tokens; raise max_tokens in the recipe.")
    return kept, len(samples) - len(kept)


def as_npy(array: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Order:
    """Which recordings each step trains on: a pure function of (seed, step).

    Every pass over the data is shuffled anew; recordings of like size stand together, as a batch is as long as its
    longest.
    """

    POOL = 32  # batches that are sorted by size together

    def __init__(self, sizes: Sequence[float], batch: int, seed: int):
        self._sizes, self._batch, self._seed = np.array(sizes), batch, seed
        self._epoch, self._batches = -1, np.zeros((0, batch), np.int64)

    def batch(self, step: int) -> np.ndarray:
        """(batch,) int64 indices of the recordings of a step, counted from 0."""
        per_epoch = -(-len(self._sizes) // self._batch)
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch, per_epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        order = np.resize(rng.permutation(len(self._sizes)), count * self._batch)  # the last batch is filled up
        pools = [
            pool[np.argsort(self._sizes[pool], kind="stable")].reshape(-1, self._batch)
            for pool in np.split(order, range(self.POOL * self._batch, len(order), self.POOL * self._batch))
        ]
        return np.concatenate([rng.permutation(pool) for pool in pools])
