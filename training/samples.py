"""Recordings as token ids: what is left to do before a step is to draw ratios, questions and positions.

It knows the checkpoint's tokenizer and prompt, no audio and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from speech_xl.prompt import Prompt
from training.data import DataError, Question, Recording

CHARACTERS_PER_TOKEN = 4  # of English, roughly


@dataclass(frozen=True)
class Sample:
    """One recording. `speech` (N,) int32: ids of the recognised words, whose embeddings are the speech tokens.

    Its questions are text until a step needs them: a run reads few of many.
    """

    speech: np.ndarray
    questions: tuple[Question, ...] = ()

    @property
    def size(self) -> float:
        """Rows that the recording takes, roughly: recordings of like size share a batch."""
        return len(self.speech) + sum(len(q.text) + len(q.answer) for q in self.questions) / CHARACTERS_PER_TOKEN

    def window(self, most: int, rng: np.random.Generator) -> Sample:
        """At most so many of its speech tokens, from anywhere. Only for recordings without questions."""
        if len(self.speech) <= most:
            return self
        first = int(rng.integers(0, len(self.speech) - most + 1))
        return replace(self, speech=self.speech[first : first + most])


def build_samples(recordings: Sequence[Recording], prompt: Prompt, max_tokens: int) -> tuple[list[Sample], int]:
    """-> the recordings to train on, and how many with questions were left out as longer than `max_tokens`."""
    ids_of: dict[str, list[int]] = {}
    samples, too_long = [], 0
    for recording in recordings:
        if recording.heard is None:
            raise DataError(
                f"{recording.where}: a checkpoint with a recogniser trains on what it heard; give the words as heard."
            )
        ids: list[int] = []
        for word in recording.heard.split():
            if word not in ids_of:
                ids_of[word] = prompt.text_ids(" " + word)
            ids += ids_of[word]
        if recording.questions and len(ids) > max_tokens:
            too_long += 1
        else:
            samples.append(Sample(np.array(ids, np.int32), recording.questions))
    if not samples:
        raise DataError(f"Every recording is longer than max_tokens {max_tokens}; raise it in the recipe.")
    return samples, too_long


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
