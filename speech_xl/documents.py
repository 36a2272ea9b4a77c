"""The JSON documents of `ask --json` and `transcribe --format json`: what was heard, by what, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speech_xl.asking import Answer
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.transcript import Segment


def _recording(path: Path, memory: AudioMemory) -> dict[str, Any]:
    source = memory.recording
    seconds = {"seconds": source.seconds, "seconds_heard": source.seconds_heard}
    found: dict[str, Any] = {"path": str(path), **seconds, "sha256": source.sha256}
    if memory.parts:  # several recordings: from which second of the memory on each lies
        heard = [part.recording.seconds_heard for part in memory.parts]
        starts = [round(sum(heard[:number]), 3) for number in range(len(heard))]
        found["parts"] = [{"path": p.recording.path, "start": s} for p, s in zip(memory.parts, starts, strict=True)]
    return found


def memory_fields(memory: AudioMemory) -> dict[str, Any]:
    """What a memory keeps, and in how many bytes."""
    return {
        "intervals": memory.intervals,
        "ratio": memory.ratio,
        "slots": memory.slots,
        "speech_tokens": memory.tokens,
        "bytes": memory.bytes,
    }


def answer_fields(answer: Answer) -> dict[str, Any]:
    """A question, what was answered, and where in the recording that comes from."""
    return {
        "question": answer.question,
        "answer": answer.answer,
        "finish_reason": answer.finish_reason,
        "evidence": [dataclasses.asdict(e) for e in answer.evidence],
    }


def answer_document(
    path: Path, model: SpeechModel, memory: AudioMemory, listen_seconds: float, answers: list[Answer]
) -> dict[str, Any]:
    """The one JSON document of `ask --json`."""
    return {
        "recording": _recording(path, memory),
        "model": model.config.name,
        "backend": model.backend.name,
        "memory": memory_fields(memory),
        "timing": {
            "listen_seconds": round(listen_seconds, 3),
            "answer_seconds": round(sum(a.seconds for a in answers), 3),
        },
        "answers": [answer_fields(answer) for answer in answers],
    }


def transcript_document(
    path: Path, model: SpeechModel, memory: AudioMemory, segments: Iterable[Segment]
) -> dict[str, Any]:
    """The one JSON document of `transcribe --format json`."""
    return {
        "recording": _recording(path, memory),
        "model": model.config.name,
        "memory": memory_fields(memory),
        "segments": [dataclasses.asdict(s) for s in segments],
    }
