"""Memories of several recordings as one that is asked about all of them.

Where a model's intervals see nothing of one another while they are heard (a listening horizon of 0), a memory may follow
another as it is: its keys are turned once to their new positions, and the prefix is kept once. Nothing is heard again.
It knows memories and their parts; tensors are the backend's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speech_xl.errors import ScheduleError
from speech_xl.memory import AudioMemory, MemoryPart, RecordingSource

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel


def join_memories(model: SpeechModel, memories: Sequence[AudioMemory]) -> AudioMemory:
    """One memory of several recordings of `model`, one or more, in that order; the given ones stay as they were.

    Its seconds go on from one recording to the next, and `part_at` says which recording a second lies in. Ratios may
    differ. ScheduleError where memories of this model do not stand alone, or were made by different rules. It is what
    hearing the recordings one after the other leaves, but for the distance that the prefix has while they are heard.
    """
    if model.horizon != 0:
        raise ScheduleError(
            "Memories of this model cannot be joined: an interval sees earlier ones while it is heard. "
            "Take a model with a listening horizon of 0, like small."
        )
    if any(memory.text_position is not None for memory in memories):
        raise ValueError("a slice of a memory is for asking, not for joining")
    rules = sorted({memory.summarizer for memory in memories})
    if len(rules) > 1:
        raise ScheduleError(
            f"These memories were made by different summarizers ({', '.join(rules)}); listen again with one."
        )
    parts = tuple(part for memory in memories for part in parts_of(memory))
    state, prefix = memories[0].state, len(memories[0].prefix)
    spans, times = [memories[0].spans], [memories[0].times]
    tokens, seconds = memories[0].tokens, memories[0].seconds
    recalled = dict(memories[0].recalled)
    with model.lock:
        for memory in memories[1:]:
            state = model.backend.join(state, memory.state, prefix)
            spans.append(memory.spans + tokens)
            times.append((memory.times.astype(np.float64) + seconds).astype(np.float32))
            recalled |= {(first + tokens, stop + tokens): ids for (first, stop), ids in memory.recalled.items()}
            tokens, seconds = tokens + memory.tokens, seconds + memory.seconds
        size = model.backend.memory_bytes(state)
    declared = [part.recording.seconds for part in parts]
    source = RecordingSource(
        " + ".join(part.recording.path for part in parts),
        None if None in declared else round(sum(filter(None, declared)), 3),
        round(seconds, 3),
        parts[0].recording.sha256 if len(parts) == 1 else "",
    )
    warnings = dict.fromkeys(warning for memory in memories for warning in memory.warnings)
    slots = prefix + sum(map(len, spans))
    return dataclasses.replace(
        memories[0],
        state=state,
        spans=np.concatenate(spans),
        times=np.concatenate(times),
        ratios=tuple(ratio for memory in memories for ratio in memory.ratios),
        recording=source,
        bytes=size,
        warnings=tuple(dict.fromkeys((*warnings, *model.position_warnings(slots)))),
        recalled=recalled,
        parts=parts if len(parts) > 1 else (),
    )


def parts_of(memory: AudioMemory) -> tuple[MemoryPart, ...]:
    """The recordings in a memory, one or more."""
    return memory.parts or (MemoryPart(memory.recording, memory.tokens),)
