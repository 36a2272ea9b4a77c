"""Several recordings heard as one batch: their windows in one encoder call, their intervals side by side.

Each recording is cut and planned as if it were alone, so what comes of it is the same but for last digits; weights are
read once for all, and the device gets larger matrices. It drives a backend; a recording's own state is listening.py's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, TypeAlias

from speech_xl.allocator import release_free_memory
from speech_xl.errors import SpeechXLError
from speech_xl.front_end import Part
from speech_xl.heard import Heard
from speech_xl.interval_batches import joint_batches

if TYPE_CHECKING:
    from speech_xl.listening import Listening

INTERVALS_PER_RELEASE = 12  # often enough to stay flat, rarely enough to cost nothing

Told: TypeAlias = "tuple[Listening, Heard | SpeechXLError | None]"


class ListeningBatch:
    """Recordings, all of one model, that are heard as one batch; others may join at any time. Close it at the end."""

    def __init__(self) -> None:
        self._going: list[Listening] = []

    def __len__(self) -> int:
        """Recordings that are not over."""
        return len(self._going)

    def add(self, listening: Listening) -> None:
        """Hear it from the next step on. RuntimeError if it has been heard before."""
        listening.begin()
        self._going.append(listening)

    def close(self) -> None:
        """End the readers of all that are not over."""
        for listening in self._going:
            listening.close()
        if self._going:
            release_free_memory()
        self._going = []

    def step(self) -> Iterator[Told]:
        """Hear the next group of windows of each recording, and what intervals it fills -> their events.

        A recording's events are followed by None at its end, when its memory is there unless it was cancelled, or by the
        error that ended it; the others go on.
        """
        parts: list[tuple[Listening, Part]] = []
        ended: list[tuple[Listening, SpeechXLError | None]] = []
        for listening in self._going:
            try:
                part = listening.next_part()
            except SpeechXLError as error:
                ended.append((listening, error))
            else:
                if part is None or listening.cancelled:
                    ended.append((listening, None))
                else:
                    parts.append((listening, part))
        yield from _hear(parts)
        whole = [listening for listening, failure in ended if failure is None and not listening.cancelled]
        yield from _close_intervals([listening for listening, _ in parts], whole)
        for listening, failure in ended:
            if listening in whole and not listening.cancelled:
                if (event := listening.event_between(at_end=True)) is not None:
                    yield listening, event
                listening.finish()
            self._going.remove(listening)
            listening.close()
            release_free_memory()
            yield listening, failure


def listen_together(listenings: Iterable[Listening], at_once: int) -> Generator[Told, None, None]:
    """Events of recordings, see `ListeningBatch.step`; `at_once` of them are heard at a time, the next one when one ends.

    Leaving the loop ends all.
    """
    waiting = iter(listenings)
    with closing(ListeningBatch()) as batch:
        while True:
            while len(batch) < at_once and (listening := next(waiting, None)) is not None:
                batch.add(listening)
            if not len(batch):
                return
            yield from batch.step()


def _hear(parts: list[tuple[Listening, Part]]) -> Iterator[Told]:
    """Hear the next group of each recording."""
    if not parts:
        return
    model = parts[0][0].model
    with model.lock:
        heard = model.front_end.hear([part for _, part in parts])
        for (listening, part), tokens in zip(parts, heard, strict=True):
            listening.take(part, tokens)
    for listening, _ in parts:
        if (event := listening.event_between(at_end=False)) is not None:
            yield listening, event


def _close_intervals(going: list[Listening], ending: list[Listening]) -> Iterator[Told]:
    """Hear queued tokens as intervals, in as few batches as the horizon allows; an event for each."""
    listenings = [*going, *ending]
    plans = [listening.plans(at_end=number >= len(going)) for number, listening in enumerate(listenings)]
    for batch in joint_batches(plans):
        batch = {number: own for number, own in batch.items() if not listenings[number].cancelled}
        if not batch:
            continue
        model = listenings[0].model
        with model.lock:
            model.backend.close_intervals([(listenings[number].state, own) for number, own in batch.items()])
            for number, own in batch.items():
                listenings[number].advance(own)
        if any(listenings[number].intervals % INTERVALS_PER_RELEASE < len(own) for number, own in batch.items()):
            release_free_memory()
        for number, own in batch.items():
            for plan in own:
                yield listenings[number], listenings[number].event(plan)
