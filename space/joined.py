"""Several kept memories as one that is asked about all of them: what was heard goes on from one recording to the next.

The core joins the memories; this file moves the times of what was heard beside them. It knows no files and no components.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from speech_xl.conversation import Heard
from speech_xl.joining import join_memories
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel

Opened = tuple[str, AudioMemory, list[Heard]]  # name, memory, what was heard


def join_opened(model: SpeechModel, opened: Sequence[Opened]) -> Opened:
    """One or more memories as one; ScheduleError where memories of this model cannot be joined."""
    if len(opened) == 1:
        return opened[0]
    joined = join_memories(model, [memory for _, memory, _ in opened])
    events: list[Heard] = []
    seconds, tokens, raw_bytes = 0.0, 0, 0
    for _, memory, heard in opened:
        events += [_moved(event, seconds, tokens, raw_bytes, joined.seconds) for event in heard]
        seconds, tokens = seconds + memory.seconds, tokens + memory.tokens
        raw_bytes += heard[-1].raw_bytes if heard else 0
    return " + ".join(name for name, _, _ in opened), joined, events


def _moved(event: Heard, seconds: float, tokens: int, raw_bytes: int, total: float) -> Heard:
    """An event that comes behind `seconds`, `tokens` and `raw_bytes` of other recordings, in all `total` seconds long."""
    words = event.words
    if words is not None:
        words = tuple(dataclasses.replace(w, start=w.start + seconds, end=w.end + seconds) for w in words)
    return dataclasses.replace(
        event,
        seconds=event.seconds + seconds,
        total_seconds=total,
        tokens=event.tokens + tokens,
        raw_bytes=event.raw_bytes + raw_bytes,
        interval_start=event.interval_start + seconds,
        interval_end=event.interval_end + seconds,
        words=words,
    )
