"""What is told of a recording while it is heard: an event for each interval, with its seconds, its level and its words.

It keeps what the next events need, and all tokens' times; it knows no backend.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from speech_xl.config import SAMPLING_RATE, ModelConfig
from speech_xl.front_end import SpeechTokens
from speech_xl.prefetch import samples_per_level
from speech_xl.recognition import Word
from speech_xl.schedule import IntervalPlan, Ratio


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


@dataclass(frozen=True)
class Reached:
    """How far a recording's memory has come."""

    tokens: int
    slots: int  # prefix included
    intervals: int


class EventMaker:
    """Makes the events of one recording. `prefix`: slots of text before it; sizes in bytes."""

    def __init__(
        self,
        config: ModelConfig,
        total_seconds: float | None,
        ratio: Ratio,
        prefix: int,
        bytes_per_slot: int,
        itemsize: int,
    ):
        self._config, self._total_seconds, self._ratio = config, total_seconds, ratio
        self._prefix, self._bytes_per_slot = prefix, bytes_per_slot
        self._raw_bytes_per_token = config.kv_values_per_slot * itemsize
        self._started = time.monotonic()
        self._times = [np.zeros((0, 2), np.float32)]  # of all speech tokens, ...
        self._waiting = self._times[0]  # ... and of those that no interval holds yet
        self._words: deque[tuple[int, Word]] = deque()  # each one's first token, and the word: those that wait
        self._energy = np.zeros(0, np.float32)  # mean squares of sound, ...
        self._energy_start = 0  # ... and the first one's place
        self._tokens = 0
        self._told_seconds = 0.0  # as the last event has it
        self.seconds = 0.0  # heard by the backend

    def start(self) -> None:
        """Speed counts from here."""
        self._started = time.monotonic()

    def take(self, heard: SpeechTokens, energy: np.ndarray) -> None:
        """What a group of windows brought, and the mean squares of its sound; see HeardWindows."""
        self._times.append(heard.times)
        self._waiting = np.concatenate([self._waiting, heard.times])
        self._words.extend((self._tokens + token, word) for token, word in heard.words or ())
        self._tokens += len(heard.times)
        self._energy = np.concatenate([self._energy, energy])
        self.seconds = heard.seconds

    def times(self, tokens: int) -> np.ndarray:
        """(tokens, 2) float32: start and end in seconds of the first speech tokens."""
        return np.concatenate(self._times)[:tokens]

    @property
    def is_all_told(self) -> bool:
        """Whether the last event reached as far as the recording has been heard."""
        return self._told_seconds >= self.seconds - 0.01

    def of_interval(self, plan: IntervalPlan) -> Heard:
        """The event of an interval that was closed. In order."""
        heard, self._waiting = self._waiting[: plan.tokens], self._waiting[plan.tokens :]
        start, end = round(heard[0, 0].item(), 3), round(heard[-1, 1].item(), 3)
        level = self._level(start, end)
        self._forget_energy(end)
        tokens = plan.first_token + plan.tokens
        words: list[Word] = []
        while self._words and self._words[0][0] < tokens:
            words.append(self._words.popleft()[1])
        now = Reached(tokens, plan.base + plan.kept, plan.index)
        return self._event(now, start, end, level, tuple(words), plan.ratio, plan.kept)

    def of_sound(self, now: Reached) -> Heard:
        """The event of sound that brought too few words to close an interval."""
        end = self.seconds
        level = self._level(self._told_seconds, end)
        if not len(self._waiting):
            self._forget_energy(end)
        return self._event(now, end, end, level, (), self._ratio, 0)

    def _event(
        self, now: Reached, start: float, end: float, level: float, words: tuple[Word, ...], ratio: Ratio, kept: int
    ) -> Heard:
        self._told_seconds = seconds = max(self._told_seconds, end)
        return Heard(
            seconds=seconds,
            total_seconds=self._total_seconds,
            speed=seconds / max(1e-9, time.monotonic() - self._started),
            tokens=now.tokens,
            slots=now.slots,
            memory_bytes=now.slots * self._bytes_per_slot,
            raw_bytes=(self._prefix + now.tokens) * self._raw_bytes_per_token,
            interval=now.intervals,
            interval_start=start,
            interval_end=end,
            ratio=ratio,
            interval_slots=kept,
            level=level,
            words=None if self._config.recognizer is None else words,
        )

    def _level(self, start: float, end: float) -> float:
        """dB relative to full scale of the sound between two seconds."""
        per_second = SAMPLING_RATE / samples_per_level(self._config)
        blocks = np.array([start, end]) * per_second - self._energy_start
        part = self._energy[max(0, int(blocks[0] + 0.1)) : max(0, int(np.ceil(blocks[1] - 0.1)))]
        return 10 * math.log10(max(float(part.mean()) if len(part) else 0.0, 1e-10))

    def _forget_energy(self, end: float) -> None:
        """No event will ask for the level of what lies before `end`."""
        past = int(end * SAMPLING_RATE / samples_per_level(self._config) + 0.1) - self._energy_start
        past = min(max(0, past), len(self._energy))
        self._energy, self._energy_start = self._energy[past:], self._energy_start + past
