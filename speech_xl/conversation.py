"""The one way in: a recording becomes a memory, and a memory answers questions.

It joins audio, features, schedule, prompt and memory, and drives a backend; it takes every decision about
what is heard and when an answer ends. Progress is a stream of small events that the command line and the
page listen to. It knows no framework and no user interface.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_xl.allocator import release_free_memory
from speech_xl.asking import Answer, Asking, tell_together
from speech_xl.config import SAMPLING_RATE
from speech_xl.decoders import SoundSource
from speech_xl.errors import ScheduleError
from speech_xl.interval_batches import interval_batches
from speech_xl.memory import AudioMemory, RecordingSource, join_spans
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.plain_text import plain_text
from speech_xl.prefetch import HeardWindows, WindowReader, samples_per_level
from speech_xl.prompt import LONGEST_ANSWER
from speech_xl.recognition import Word
from speech_xl.sampling import GREEDY, Sampling
from speech_xl.schedule import FixedRatio, IntervalPlan, PastInterval, Ratio, Scheduler, format_bytes
from speech_xl.slices import check_said
from speech_xl.summarizers import choose_summarizer

INTERVALS_PER_RELEASE = 12  # often enough to stay flat, rarely enough to cost nothing


@dataclass(frozen=True)
class Heard:
    """One interval has been heard: progress so far, and what the interval left.

    Where nobody speaks no interval ends, and an event with `interval_slots` 0 tells that listening goes on.
    """

    seconds: float  # heard so far
    total_seconds: float | None  # as the file declares; None where it does not say
    speed: float  # times faster than real time
    tokens: int
    slots: int  # memory length, prefix included
    memory_bytes: int
    raw_bytes: int  # what all speech tokens' keys and values would take
    interval: int
    interval_start: float  # seconds
    interval_end: float
    ratio: Ratio
    interval_slots: int
    level: float  # dB relative to full scale, RMS of its sound
    words: tuple[Word, ...] | None = None  # that start in the interval; None: this model's tokens are no words

    @property
    def text(self) -> str | None:
        """The interval's words as one line."""
        return None if self.words is None else " ".join(word.text for word in self.words)


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
        self._model = model
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
            self._state = model.backend.start(list(self._prefix))
        self._front_end = model.new_front_end()
        self._past: list[PastInterval] = []
        self._recalled: dict[tuple[int, int], list[int]] = {}  # of all memories of this recording
        self._times = [np.zeros((0, 2), np.float32)]  # of all speech tokens, ...
        self._waiting = self._times[0]  # ... and of those that are queued
        self._words: deque[tuple[int, Word]] = deque()  # each one's first token, and the word: those that wait
        self._energy = np.zeros(0, np.float32)  # mean squares of sound, ...
        self._energy_start = 0  # ... and the first one's place
        self._queued = 0
        self._heard_seconds = self._told_seconds = 0.0  # by the backend, and as the last event has it
        self._is_started = False
        self._memory: AudioMemory | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Stop as soon as the interval in work is done; no memory comes of it."""
        self.cancelled = True
        self._reader.close()

    def __iter__(self) -> Iterator[Heard]:
        if self._is_started:
            raise RuntimeError("a Listening hears its recording once; make another one to hear it again")
        self._is_started = True
        self._started = time.monotonic()
        try:
            for group in self._reader:
                if self.cancelled:
                    return
                self._hear(group)
                if self._queued < self._model.interval and self._model.config.recognizer is not None:
                    yield self._progress(None)
                yield from self._close_intervals(self._queued // self._model.interval * self._model.interval)
            if self.cancelled:
                return
            yield from self._close_intervals(self._queued)
            if self._told_seconds < self._heard_seconds - 0.01:  # the end is silent
                yield self._progress(None)
            self._memory = self._make_memory(self._state, self._past, self._scheduler.tokens, self._reader.sha256)
        finally:
            self._reader.close()
            release_free_memory()

    def _hear(self, group: HeardWindows) -> None:
        with self._model.lock:
            first = self._scheduler.tokens + self._queued
            heard = self._front_end.hear(self._state, group)
            self._times.append(heard.times)
            self._waiting = np.concatenate([self._waiting, heard.times])
            self._queued += len(heard.times)
            self._heard_seconds = heard.seconds
        self._words.extend((first + token, word) for token, word in heard.words or ())
        self._energy = np.concatenate([self._energy, group.energy])

    def _close_intervals(self, tokens: int) -> Iterator[Heard]:
        """Hear queued tokens as intervals, in as few batches as the horizon allows; an event for each."""
        plans = list(copy.copy(self._scheduler).plan_all(tokens))  # the clock itself moves with what is heard
        for batch in interval_batches(plans):
            with self._model.lock:
                self._model.backend.close_intervals(self._state, batch)
                for plan in batch:
                    self._scheduler.advance(plan)
                self._past += [plan.past for plan in batch]
                self._queued -= sum(plan.tokens for plan in batch)
            if len(self._past) % INTERVALS_PER_RELEASE < len(batch):
                release_free_memory()
            for plan in batch:
                yield self._progress(plan)

    def _progress(self, plan: IntervalPlan | None) -> Heard:
        """The event of an interval that was closed, or, without one, of sound that brought too few words to close it."""
        config, backend, scheduler = self._model.config, self._model.backend, self._scheduler
        start = end = self._heard_seconds
        level = self._level(self._told_seconds, end)
        if plan is not None:
            heard, self._waiting = self._waiting[: plan.tokens], self._waiting[plan.tokens :]
            start, end = round(heard[0, 0].item(), 3), round(heard[-1, 1].item(), 3)
            level = self._level(start, end)
        if plan is not None or not self._queued:
            self._forget_energy(end)
        self._told_seconds = seconds = max(self._told_seconds, end)
        tokens, slots = scheduler.tokens, scheduler.base
        if plan is not None:  # which may not be the last of its batch
            tokens, slots = plan.first_token + plan.tokens, plan.base + plan.kept
        words: list[Word] = []
        while plan is not None and self._words and self._words[0][0] < tokens:
            words.append(self._words.popleft()[1])
        return Heard(
            seconds=seconds,
            total_seconds=self.total_seconds,
            speed=seconds / max(1e-9, time.monotonic() - self._started),
            tokens=tokens,
            slots=slots,
            memory_bytes=slots * self._model.bytes_per_slot,
            raw_bytes=(len(self._prefix) + tokens) * config.kv_values_per_slot * backend.itemsize,
            interval=scheduler.index if plan is None else plan.index,
            interval_start=start,
            interval_end=end,
            ratio=self.ratio if plan is None else plan.ratio,
            interval_slots=0 if plan is None else plan.kept,
            level=level,
            words=None if config.recognizer is None else tuple(words),
        )

    def _level(self, start: float, end: float) -> float:
        """dB relative to full scale of the sound between two seconds."""
        per_second = SAMPLING_RATE / samples_per_level(self._model.config)
        blocks = np.array([start, end]) * per_second - self._energy_start
        part = self._energy[max(0, int(blocks[0] + 0.1)) : max(0, int(np.ceil(blocks[1] - 0.1)))]
        return 10 * math.log10(max(float(part.mean()) if len(part) else 0.0, 1e-10))

    def _forget_energy(self, end: float) -> None:
        """No event will ask for the level of what lies before `end`."""
        past = int(end * SAMPLING_RATE / samples_per_level(self._model.config) + 0.1) - self._energy_start
        past = min(max(0, past), len(self._energy))
        self._energy, self._energy_start = self._energy[past:], self._energy_start + past

    def _make_memory(self, state: object, past: list[PastInterval], tokens: int, digest: str) -> AudioMemory:
        with self._model.lock:
            size = self._model.backend.memory_bytes(state)
        last = max((p.last_position for p in past), default=-1)
        warnings = (*self._reader.warnings, *self._model.position_warnings(last + 1))
        if self._budget is not None and size > self._budget:
            has_recognizer = self._model.config.recognizer is not None
            reason = "holds more words than was estimated" if has_recognizer else "is longer than it declares"
            warnings += (
                f"{self._path.name} {reason}: its memory takes {format_bytes(size)}, more than "
                f"the budget of {format_bytes(self._budget)}.",
            )
        return AudioMemory(
            state=state,
            spans=join_spans(past),
            times=np.concatenate(self._times)[:tokens],
            ratios=tuple(p.ratio for p in past),
            interval=self._model.interval,
            prefix=self._prefix,
            recording=RecordingSource(
                plain_text(self._path.name), self.total_seconds, round(self._heard_seconds, 3), digest
            ),
            model=self._model.config.name,
            fingerprint=self._model.fingerprint,
            summarizer=self.summarizer.name,
            bytes=size,
            warnings=tuple(map(plain_text, warnings)),
            recalled=self._recalled,
        )

    def snapshot(self) -> AudioMemory:
        """A memory of what has been heard so far, the open interval included; listening goes on unharmed."""
        with self._model.lock:
            state = self._model.backend.fork(self._state)
            past, tokens = list(self._past), self._scheduler.tokens
            for batch in interval_batches(list(copy.copy(self._scheduler).plan_all(self._queued))):
                self._model.backend.close_intervals(state, batch)
                past += [plan.past for plan in batch]
            tokens += self._queued
        return self._make_memory(state, past, tokens, digest="")

    @property
    def memory(self) -> AudioMemory:
        """The finished memory; RuntimeError while events are still to come."""
        if self._memory is None:
            raise RuntimeError("the recording has not been heard to its end")
        return self._memory


def ask(
    model: SpeechModel,
    memory: AudioMemory,
    question: str,
    longest: int = LONGEST_ANSWER,
    start: float | None = None,
    end: float | None = None,
    stop: Sequence[str] = (),
    sampling: Sampling = GREEDY,
) -> Asking:
    """Ask one question about a memory, or about [start, end] seconds of it alone; QuestionError at once if it cannot be
    asked. The answer ends before the first text of `stop`; its tokens are the most probable ones unless `sampling` says
    otherwise.
    """
    span = None if start is None and end is None else check_said(memory, start, end)
    return Asking(model, memory, question, longest, span, stop, sampling)


def ask_together(
    model: SpeechModel,
    memory: AudioMemory,
    questions: Sequence[str],
    longest: int = LONGEST_ANSWER,
    start: float | None = None,
    end: float | None = None,
    stop: Sequence[str] = (),
) -> Iterator[Answer]:
    """Ask several questions about one memory, in batches that share it -> their answers, in order.

    Each is the answer that `ask` gives to the question alone, greedy and whole; several take little longer than one.
    QuestionError at once if any of them cannot be asked. The model's lock is
    free between tokens, so that others are served meanwhile.
    """
    span = None if start is None and end is None else check_said(memory, start, end)
    return tell_together([Asking(model, memory, question, longest, span, stop) for question in questions])
