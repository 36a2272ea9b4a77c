"""Part of a memory: the slots of a span of the recording, so that a question is answered from that span alone.

It knows slots and seconds; nothing is heard again, and no tensor is touched but by the backend.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from speech_xl.clock import clock
from speech_xl.errors import QuestionError
from speech_xl.memory import AudioMemory

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel


def check_span(start: float | None, end: float | None, seconds: float | None) -> tuple[float, float]:
    """Where a span of a recording of `seconds` (None: not known yet) starts and ends, in seconds.

    No `start` is the recording's beginning, no `end` its end. An end in the recording's last, started second is its
    end: clocks show whole seconds. QuestionError if the span is empty or not inside the recording.
    """
    first = 0.0 if start is None else start
    last = (math.inf if seconds is None else seconds) if end is None else end
    if not (first >= 0 and last >= 0):
        raise QuestionError("A time in a recording is not negative; count from 0, its beginning.")
    if seconds is not None and (first >= seconds or last > math.ceil(seconds)):
        outside = clock(first if first >= seconds else last)
        raise QuestionError(f"{outside} is outside the recording, which ends at {clock(math.ceil(seconds))}.")
    if first >= last:
        raise QuestionError(f"Nothing lies between {clock(first)} and {clock(last)}; give an end after the start.")
    return first, last if seconds is None else min(last, seconds)


def overlapping(times: np.ndarray, start: float, end: float) -> np.ndarray:
    """(n,) int64: which of the stretches times (N, 2) float32 overlap [start, end] in more than a point."""
    return np.flatnonzero((times[:, 0] < np.float32(end)) & (times[:, 1] > np.float32(start)))


def check_said(memory: AudioMemory, start: float | None, end: float | None) -> tuple[float, float]:
    """As `check_span`; QuestionError, too, if nothing is said in the span."""
    first, last = check_span(start, end, memory.seconds)
    if not len(overlapping(memory.slot_times, first, last)):
        raise QuestionError(f"Nothing is said between {clock(first)} and {clock(math.ceil(last))}; take a wider span.")
    return first, last


def slice_memory(model: SpeechModel, memory: AudioMemory, start: float | None, end: float | None) -> AudioMemory:
    """The prefix and the slots of [start, end] seconds alone, at their own positions; spans and times stay right.

    QuestionError if the span is not inside the recording, or nothing is said in it.
    """
    inside = overlapping(memory.slot_times, *check_said(memory, start, end))
    slot, stop = int(inside[0]), int(inside[-1]) + 1
    with model.lock:
        state = model.backend.slice(memory.state, len(memory.prefix), slot, stop)
        size = model.backend.memory_bytes(state)
    spans = memory.spans[slot:stop]
    intervals = np.unique(memory.slot_intervals[slot:stop])
    return dataclasses.replace(
        memory,
        state=state,
        spans=spans,
        ratios=tuple(memory.ratios[i] for i in intervals),
        bytes=size,
        text_position=memory.position - (len(memory.spans) - stop),
    )
