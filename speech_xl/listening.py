"""A recording becomes a memory: one recording's state while it is heard.

It joins audio, features, schedule, prompt and memory, and takes every decision about what is heard. Progress is a stream of
small events that the command line and the page listen to. What drives a backend, for one recording or several, is
listening_together.py's. It knows no framework and no user interface.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from speech_xl.decoders import SoundSource
from speech_xl.errors import ScheduleError
from speech_xl.front_end import Part, SpeechTokens
from speech_xl.heard import EventMaker, Heard, Reached
from speech_xl.interval_batches import interval_batches
from speech_xl.listening_together import listen_together
from speech_xl.memory import AudioMemory, RecordingSource, join_spans
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.plain_text import plain_text
from speech_xl.prefetch import HeardWindows, WindowReader
from speech_xl.schedule import FixedRatio, IntervalPlan, PastInterval, Ratio, Scheduler, format_bytes
from speech_xl.summarizers import choose_summarizer
from speech_xl.word_reader import Earlier


class Listening:
    """Hears a recording once: RuntimeError the second time. Iterate over its events; `memory` is there when they end.

    Decoding and log-mel features run ahead on a thread of their own, a few windows at most, so that memory
    stays constant whatever the length. `cancel()` and leaving the loop both end that thread.
    """

    def __init__(
        self,
        model: SpeechModel,
        path: str | Path | SoundSource,
        ratio: Ratio | str = DEFAULT,
        memory_budget: int | None = None,
        summarizer: str = "auto",
    ):
        self.model = model
        self._path = Path(path) if isinstance(path, str) else path
        self.summarizer, self.summarizer_reason = choose_summarizer(summarizer, model.config)
        self._reader = WindowReader(self._path, model.config)
        self.total_seconds = self._reader.info.seconds
        try:
            self.ratio = model.choose_ratio(ratio, memory_budget, self.total_seconds)
            if self.summarizer.name == "raw" and self.ratio is not None:
                if memory_budget is not None:
                    raise ScheduleError(
                        "The summarizer raw keeps every speech token, more than this budget allows; "
                        "choose another summarizer."
                    )
                self.ratio = None
        except ScheduleError:
            self._reader.close()
            raise
        self._budget = memory_budget
        self._prefix = tuple(model.prompt.prefix_ids)
        self._scheduler = Scheduler(
            model.interval, FixedRatio(self.ratio), len(self._prefix), self.summarizer.plan, model.horizon
        )
        with model.lock:
            self.state = model.backend.start(list(self._prefix))
        self._events = EventMaker(
            model.config,
            self.total_seconds,
            self.ratio,
            len(self._prefix),
            model.bytes_per_slot,
            model.backend.itemsize,
        )
        self._earlier = Earlier()
        self._past: list[PastInterval] = []
        self._recalled: dict[tuple[int, int], list[int]] = {}  # of all memories of this recording
        self._queued = 0  # speech tokens that no interval holds yet
        self._groups: Iterator[HeardWindows] | None = None
        self._memory: AudioMemory | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Stop as soon as the interval in work is done; no memory comes of it."""
        self.cancelled = True
        self.close()

    def close(self) -> None:
        """End the reader's thread, and wait for that."""
        self._reader.close()

    def __iter__(self) -> Iterator[Heard]:
        with closing(listen_together([self], 1)) as events:
            for _, event in events:
                if isinstance(event, Exception):
                    raise event
                if event is not None:
                    yield event

    def begin(self) -> None:
        """Start the reader. RuntimeError the second time."""
        if self._groups is not None:
            raise RuntimeError("a Listening hears its recording once; make another one to hear it again")
        self._groups = iter(self._reader)
        self._events.start()

    def next_part(self) -> Part | None:
        """What has to be heard next; None at the end. RecordingError where the file cannot be read on."""
        group = None if self._groups is None else next(self._groups, None)
        return None if group is None else Part(self.state, group, self._earlier)

    def take(self, part: Part, heard: SpeechTokens) -> None:
        """What was heard and is queued now. The caller holds the model's lock."""
        self._queued += len(heard.times)
        self._events.take(heard, part.group.energy)

    def plans(self, at_end: bool) -> list[IntervalPlan]:
        """Of the intervals that can be closed: those that are full, at the recording's end also the last one."""
        tokens = self._queued if at_end else self._queued // self.model.interval * self.model.interval
        return list(copy.copy(self._scheduler).plan_all(tokens))  # the clock itself moves with what is heard

    def advance(self, plans: Sequence[IntervalPlan]) -> None:
        """The backend has closed these intervals. The caller has held the model's lock since before."""
        for plan in plans:
            self._scheduler.advance(plan)
        self._past += [plan.past for plan in plans]
        self._queued -= sum(plan.tokens for plan in plans)

    @property
    def intervals(self) -> int:
        """That were closed so far."""
        return len(self._past)

    def event(self, plan: IntervalPlan) -> Heard:
        """The event of a closed interval, in order."""
        return self._events.of_interval(plan)

    def event_between(self, at_end: bool) -> Heard | None:
        """The event of sound that closes no interval: where too few words came, or at a silent end. None: nothing to tell."""
        if at_end:
            is_due = not self._events.is_all_told
        else:
            is_due = self._queued < self.model.interval and self.model.config.recognizer is not None
        reached = Reached(self._scheduler.tokens, self._scheduler.base, self._scheduler.index)
        return self._events.of_sound(reached) if is_due else None

    def finish(self) -> None:
        """All has been heard: make the memory."""
        self._memory = self._make_memory(self.state, self._past, self._scheduler.tokens, self._reader.sha256)

    def _make_memory(self, state: object, past: list[PastInterval], tokens: int, digest: str) -> AudioMemory:
        with self.model.lock:
            size = self.model.backend.memory_bytes(state)
        last = max((p.last_position for p in past), default=-1)
        warnings = (*self._reader.warnings, *self.model.position_warnings(last + 1))
        if self._budget is not None and size > self._budget:
            has_recognizer = self.model.config.recognizer is not None
            reason = "holds more words than was estimated" if has_recognizer else "is longer than it declares"
            warnings += (
                f"{self._path.name} {reason}: its memory takes {format_bytes(size)}, more than "
                f"the budget of {format_bytes(self._budget)}.",
            )
        return AudioMemory(
            state=state,
            spans=join_spans(past),
            times=self._events.times(tokens),
            ratios=tuple(p.ratio for p in past),
            interval=self.model.interval,
            prefix=self._prefix,
            recording=RecordingSource(
                plain_text(self._path.name), self.total_seconds, round(self._events.seconds, 3), digest
            ),
            model=self.model.config.name,
            fingerprint=self.model.fingerprint,
            summarizer=self.summarizer.name,
            bytes=size,
            warnings=tuple(map(plain_text, warnings)),
            recalled=self._recalled,
        )

    def snapshot(self) -> AudioMemory:
        """A memory of what has been heard so far, the open interval included; listening goes on unharmed."""
        with self.model.lock:
            state = self.model.backend.fork(self.state)
            past, tokens = list(self._past), self._scheduler.tokens + self._queued
            for batch in interval_batches(self.plans(at_end=True)):
                self.model.backend.close_intervals([(state, batch)])
                past += [plan.past for plan in batch]
        return self._make_memory(state, past, tokens, digest="")

    @property
    def memory(self) -> AudioMemory:
        """The finished memory; RuntimeError while events are still to come."""
        if self._memory is None:
            raise RuntimeError("the recording has not been heard to its end")
        return self._memory
