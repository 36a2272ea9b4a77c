"""Recordings as speech tokens: what is left to do before a step is to draw ratios, questions and positions.

What is kept of a whole run's recordings is a few numbers each (where its lines are, how long it is); a step reads those
that it trains on. It knows files of JSON lines and where features lie, no network.

Letters: N speech tokens of a recording.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from training.data import DataError, Place, Question, Recording, recording_at

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


# A recording, its speech tokens where their number is known, and the recording before it, as a sample.
Make = Callable[[Recording, int | None, Recording | None], Sample]


class Samples(Sequence[Sample]):
    """The samples of a run, each read when it is asked for. `sizes` (n,) float64 are their `Sample.size`."""

    def __init__(
        self,
        paths: Sequence[Path],
        places: np.ndarray,
        tokens: np.ndarray,
        sizes: np.ndarray,
        make: Make,
        before: np.ndarray | None = None,
    ):
        """places (n, 4) int64 as `Place` has them, tokens (n,) int64; before (n, 4): those of the recordings before, where
        `make` wants them, file -1 where there is none.
        """
        self._paths, self._places, self._tokens, self._make, self._before = paths, places, tokens, make, before
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        before = None
        if self._before is not None and self._before[index, 0] >= 0:
            before = self._recording(self._before[index])
        return self._make(self._recording(self._places[index]), int(self._tokens[index]), before)

    def _recording(self, place: np.ndarray) -> Recording:
        return recording_at(self._paths, Place(*place.tolist()))


def index_samples(
    paths: Sequence[Path], found: Iterable[tuple[Recording, Place]], make: Make, max_tokens: int, in_order: bool = False
) -> tuple[Samples, int]:
    """-> the recordings to train on, and how many were left out as silent or longer than `max_tokens`.

    Heard words without questions are never too long: a step takes a window of them. `in_order`: `make` wants to know
    the recording before.
    """
    places, befores, tokens, sizes, left_out = array("q"), array("q"), array("q"), array("d"), 0
    last: tuple[Recording | None, Place] = (None, Place(-1, 0, 0, 0))
    for recording, place in found:
        sample = make(recording, None, last[0] if in_order else None)
        has_window = sample.words is not None and not sample.questions
        if sample.tokens and (sample.tokens <= max_tokens or has_window):
            places.extend(place)
            befores.extend(last[1])
            tokens.append(sample.tokens)
            sizes.append(sample.size)
        else:
            left_out += 1
        last = recording, place
    if not places:
        raise DataError(f"No recording has 1 to {max_tokens} speech tokens; raise max_tokens in the recipe.")
    table, before = (np.array(numbers, np.int64).reshape(-1, len(Place._fields)) for numbers in (places, befores))
    made = Samples(paths, table, np.array(tokens, np.int64), np.array(sizes), make, before if in_order else None)
    return made, left_out


def as_npy(array: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Order:
    """Which recordings each step trains on: a pure function of (seed, step).

    Every pass over the data is shuffled anew; recordings of like size stand together, so that the processes of a step
    have as much to do.
    """

    POOL = 32  # batches that are sorted by size together

    def __init__(self, sizes: Sequence[float] | np.ndarray, batch: int, seed: int):
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
