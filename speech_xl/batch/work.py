"""One recording's part of a batch: hear it, keep its memory, write down its words, ask it.

What comes of it are events: progress, lines for the results in the order in which they must be kept, and an end. It
writes memory files and nothing else. It runs wherever a model is loaded, in this process or on a Ray worker.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

from speech_xl.asking import QUESTIONS_AT_ONCE
from speech_xl.batch.plan import Job
from speech_xl.batch.results import ANSWER, MEMORY, SKIPPED, TRANSCRIPT, Line
from speech_xl.batch.settings import Settings
from speech_xl.conversation import Listening, ask_together
from speech_xl.documents import answer_fields, memory_fields
from speech_xl.errors import MemoryFileError, OutputError, RecordingError, ScheduleError
from speech_xl.memory import AudioMemory, load_memory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.recognition import Word
from speech_xl.transcript import Segment, recognized_segments, transcribe


@dataclass(frozen=True)
class Progress:
    """So much of a recording has been heard."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Done:
    """Nothing is left to do of a recording, or it cannot be heard."""

    name: str


Event = Progress | Done | list[Line]  # lines of one list are kept together


def work_here(settings: Settings, jobs: Iterable[Job]) -> Generator[Event, None, None]:
    """One recording after another, in this process."""
    model = settings.load_model()
    for job in jobs:
        yield from work(model, settings, job)


def work(model: SpeechModel, settings: Settings, job: Job) -> Iterator[Event]:
    """Do one job. A recording that cannot be heard is a line that says why; what cannot be written is an OutputError."""
    name = job.recording.name
    try:
        memory, transcript = yield from _get_memory(model, settings, job)
    except (RecordingError, ScheduleError, MemoryFileError) as error:
        yield [{"kind": SKIPPED, "recording": name, "reason": str(error)}]
        yield Done(name)
        return
    if job.transcribe and not transcript:
        yield [_transcript_line(name, "memory", transcribe(model, memory))]
    for at in range(0, len(job.questions), QUESTIONS_AT_ONCE):
        # Kept together: in another batch an answer's last digits may be others, and what a kill interrupts comes out the same.
        answers = ask_together(model, memory, job.questions[at : at + QUESTIONS_AT_ONCE], settings.max_tokens)
        yield [
            {"kind": ANSWER, "recording": name, **answer_fields(answer), "warnings": list(answer.warnings)}
            for answer in answers
        ]
    yield Done(name)


def _get_memory(model: SpeechModel, settings: Settings, job: Job) -> Generator[Event, None, tuple[AudioMemory, bool]]:
    """Returns (the memory, whether a transcript came with it). Its line comes last of those that it brings."""
    if job.is_heard:
        try:
            memory = load_memory(job.memory, model)
        except MemoryFileError:
            if job.recording.is_memory:
                raise
        else:
            if job.recording.is_memory:
                yield [_memory_line(job, memory, os.stat(job.memory))]
            return memory, False
    try:
        file = os.stat(job.recording.path)
    except OSError as error:
        raise RecordingError(f"{job.recording.path} cannot be read ({error.strerror}); check the path.") from None
    listening = Listening(model, job.recording.path, settings.ratio, settings.memory_budget, settings.summarizer)
    words: list[Word] = []
    for heard in listening:
        words += heard.words or ()
        yield Progress(job.recording.name, heard.seconds)
    memory, has_words = listening.memory, model.config.recognizer is not None
    try:
        job.memory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{job.memory.parent} cannot be made ({error.strerror}); choose another folder.") from None
    save_memory(memory, job.memory, model)
    lines = [_transcript_line(job.recording.name, "heard", recognized_segments(words))] if has_words else []
    yield [*lines, _memory_line(job, memory, file)]
    return memory, has_words


def _memory_line(job: Job, memory: AudioMemory, file: os.stat_result) -> Line:
    source = memory.recording
    return {
        "kind": MEMORY,
        "recording": job.recording.name,
        "file": os.path.relpath(job.memory, job.output),
        "size": file.st_size,
        "modified": file.st_mtime_ns,
        "sha256": source.sha256,
        "seconds": source.seconds,
        "seconds_heard": source.seconds_heard,
        "memory": memory_fields(memory),
        "warnings": list(memory.warnings),
    }


def _transcript_line(name: str, source: str, segments: Iterable[Segment]) -> Line:
    """`source`: "heard" as the words were recognised while listening, "memory" as the memory tells them."""
    return {
        "kind": TRANSCRIPT,
        "recording": name,
        "source": source,
        "segments": [dataclasses.asdict(segment) for segment in segments],
    }
