"""The one way in: a recording becomes a memory, and a memory answers questions.

It joins audio, features, schedule, prompt and memory, and drives a backend; it takes every decision about
what is heard and when an answer ends. Progress is a stream of small events that the command line and the
page listen to. It knows no framework and no user interface.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_xl.allocator import release_free_memory
from speech_xl.asking import Asking
from speech_xl.audio import file_sha256
from speech_xl.config import CONV_STRIDE, HOP_LENGTH
from speech_xl.errors import ScheduleError
from speech_xl.memory import AudioMemory, RecordingSource, join_spans
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.prefetch import HeardWindows, WindowReader
from speech_xl.prompt import LONGEST_ANSWER
from speech_xl.schedule import FixedRatio, IntervalPlan, Ratio, Scheduler, format_bytes
from speech_xl.summarizers import choose_summarizer

INTERVALS_PER_RELEASE = 12  # often enough to stay flat, rarely enough to cost nothing


@dataclass(frozen=True)
class Heard:
    """One interval has been heard: progress so far, and what the interval left."""

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
    level: float  # dB relative to full scale, RMS of the interval's sound


class Listening:
    """Hears a recording once. Iterate over its events; `memory` is there when they end.

    Decoding and log-mel features run ahead on a thread of their own, a few windows at most, so that memory
    stays constant whatever the length. `cancel()` and leaving the loop both end that thread.
    """

    def __init__(
        self,
        model: SpeechModel,
        path: str | Path,
        ratio: Ratio | str = DEFAULT,
        memory_budget: int | None = None,
        summarizer: str = "auto",
    ):
        self._model = model
        self._path = Path(path)
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
        self._plans: list[IntervalPlan] = []
        self._levels: list[np.ndarray] = []  # mean squares of queued tokens' sound
        self._queued = 0
        self._memory: AudioMemory | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Stop as soon as the interval in work is done; no memory comes of it."""
        self.cancelled = True
        self._reader.close()

    def __iter__(self) -> Iterator[Heard]:
        started = time.monotonic()
        try:
            for windows in self._reader:
                if self.cancelled:
                    return
                self._hear(windows)
                while self._queued >= self._model.interval:
                    yield self._close_interval(self._model.interval, started)
            if self.cancelled:
                return
            if self._queued:
                yield self._close_interval(self._queued, started)
            digest = file_sha256(self._path)
            self._memory = self._make_memory(self._state, self._plans, self._scheduler.tokens, digest)
        finally:
            self._reader.close()
            release_free_memory()

    def _hear(self, windows: HeardWindows) -> None:
        config = self._model.config
        positions = [
            config.encoder.context_positions + -(-samples // (HOP_LENGTH * CONV_STRIDE))
            for samples in windows.valid_samples
        ]
        valid = np.minimum(np.array(positions, np.int64), config.encoder.max_source_positions)
        with self._model.lock:
            self._model.backend.hear(self._state, windows.mel, valid, windows.tokens)
            self._queued += sum(windows.tokens)
        self._levels.append(windows.energy)

    def _close_interval(self, tokens: int, started: float) -> Heard:
        with self._model.lock:
            plan = self._scheduler.next(tokens)
            self._model.backend.close_interval(self._state, plan)
            # A summarizer's selection grows with its memory; what is kept of a plan must not.
            self._plans.append(dataclasses.replace(plan, selection=None))
            self._queued -= tokens
        if len(self._plans) % INTERVALS_PER_RELEASE == 0:
            release_free_memory()
        energy = np.concatenate(self._levels)
        self._levels = [energy[tokens:]]
        level = 10 * np.log10(max(float(energy[:tokens].mean()), 1e-10))
        config, backend = self._model.config, self._model.backend
        per_token = config.seconds_per_token
        seconds = self._clip_to_end(self._scheduler.tokens * per_token)
        return Heard(
            seconds=seconds,
            total_seconds=self.total_seconds,
            speed=seconds / max(1e-9, time.monotonic() - started),
            tokens=self._scheduler.tokens,
            slots=self._scheduler.base,
            memory_bytes=self._scheduler.base * self._model.bytes_per_slot,
            raw_bytes=(len(self._prefix) + self._scheduler.tokens) * config.kv_values_per_slot * backend.itemsize,
            interval=plan.index,
            interval_start=min(seconds, plan.first_token * per_token),
            interval_end=seconds,
            ratio=plan.ratio,
            interval_slots=plan.kept,
            level=level,
        )

    def _clip_to_end(self, seconds: float) -> float:
        """The last token may reach past the last sample."""
        return min(seconds, self._reader.seconds_read)

    def _make_memory(self, state: object, plans: list[IntervalPlan], tokens: int, digest: str) -> AudioMemory:
        config = self._model.config
        seconds = self._clip_to_end(tokens * config.seconds_per_token)
        with self._model.lock:
            size = self._model.backend.memory_bytes(state)
        warnings = tuple(self._reader.warnings)
        if self._budget is not None and size > self._budget:
            warnings += (
                f"{self._path.name} is longer than it declares: its memory takes {format_bytes(size)}, more than "
                f"the budget of {format_bytes(self._budget)}.",
            )
        return AudioMemory(
            state=state,
            spans=join_spans(plans),
            ratios=tuple(p.ratio for p in plans),
            interval=self._model.interval,
            tokens=tokens,
            prefix=self._prefix,
            recording=RecordingSource(self._path.name, self.total_seconds, round(seconds, 3), digest),
            model=config.name,
            fingerprint=self._model.fingerprint,
            seconds_per_token=config.seconds_per_token,
            summarizer=self.summarizer.name,
            bytes=size,
            warnings=warnings,
        )

    def snapshot(self) -> AudioMemory:
        """A memory of what has been heard so far, the open interval included; listening goes on unharmed."""
        with self._model.lock:
            state = self._model.backend.fork(self._state)
            plans, tokens = list(self._plans), self._scheduler.tokens
            if self._queued:
                last = copy.copy(self._scheduler)
                while (left := tokens + self._queued - last.tokens) > 0:
                    plan = last.next(min(self._model.interval, left))
                    self._model.backend.close_interval(state, plan)
                    plans.append(plan)
                tokens = last.tokens
        return self._make_memory(state, plans, tokens, digest="")

    @property
    def memory(self) -> AudioMemory:
        """The finished memory; RuntimeError while events are still to come."""
        if self._memory is None:
            raise RuntimeError("the recording has not been heard to its end")
        return self._memory


def ask(model: SpeechModel, memory: AudioMemory, question: str, longest: int = LONGEST_ANSWER) -> Asking:
    """Ask one question about a memory; QuestionError at once if it cannot be asked."""
    return Asking(model, memory, question, longest)
