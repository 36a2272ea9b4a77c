"""The recordings of a batch: hear them, several at once, keep their memories, write down their words, ask them.

What comes of it are events: progress, lines for the results in the order in which they must be kept, and an end. It
writes memory files and nothing else. It runs wherever a model is loaded, in this process or on a Ray worker.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from speech_xl.asking import QUESTIONS_AT_ONCE
from speech_xl.batch.plan import Job
from speech_xl.batch.results import ANSWER, MEMORY, SKIPPED, TRANSCRIPT, Line
from speech_xl.batch.settings import Settings
from speech_xl.conversation import Heard, Listening, ask_together
from speech_xl.documents import answer_fields, memory_fields
from speech_xl.errors import MemoryFileError, OutputError, RecordingError, ScheduleError
from speech_xl.listening_together import ListeningBatch
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


UNHEARD = (RecordingError, ScheduleError, MemoryFileError)  # what is wrong with one recording and no other
Event = Progress | Done | list[Line]  # lines of one list are kept together


@dataclass
class _Hearing:
    """A job whose recording is being heard."""

    job: Job
    file: os.stat_result
    words: list[Word] = field(default_factory=list)


def work_here(settings: Settings, jobs: Iterable[Job], at_once: int) -> Generator[Event, None, None]:
    """All jobs, in this process."""
    yield from work(settings.load_model(), settings, jobs, at_once)


def work(model: SpeechModel, settings: Settings, jobs: Iterable[Job], at_once: int) -> Generator[Event, None, None]:
    """Do jobs, `at_once` recordings heard as one batch; the next job is taken when there is room.

    A recording that cannot be heard is a line that says why; what cannot be written is an OutputError.
    """
    waiting = iter(jobs)
    hearing: dict[Listening, _Hearing] = {}
    with closing(ListeningBatch()) as batch:
        while True:
            while len(batch) < at_once and (job := next(waiting, None)) is not None:
                try:
                    found = _open(model, settings, job)
                except UNHEARD as error:
                    yield from _skip(job, error)
                    continue
                if isinstance(found, AudioMemory):
                    if job.recording.is_memory:
                        yield [_memory_line(job, found, os.stat(job.memory))]
                    yield from _ask(model, settings, job, found, is_transcribed=False)
                else:
                    listening, heard = found
                    hearing[listening] = heard
                    batch.add(listening)
            if not len(batch):
                return
            for listening, event in batch.step():
                if isinstance(event, Heard):
                    hearing[listening].words += event.words or ()
                    yield Progress(hearing[listening].job.recording.name, event.seconds)
                elif event is None:
                    yield from _finish(model, settings, hearing.pop(listening), listening.memory)
                else:
                    yield from _skip(hearing.pop(listening).job, event)


def _open(model: SpeechModel, settings: Settings, job: Job) -> AudioMemory | tuple[Listening, _Hearing]:
    """The memory that there is of a job's recording, or what will hear it."""
    if job.is_heard:
        try:
            return load_memory(job.memory, model)
        except MemoryFileError:
            if job.recording.is_memory:
                raise
    try:
        file = os.stat(job.recording.path)
    except OSError as error:
        raise RecordingError(f"{job.recording.path} cannot be read ({error.strerror}); check the path.") from None
    listening = Listening(model, job.recording.path, settings.ratio, settings.memory_budget, settings.summarizer)
    return listening, _Hearing(job, file)


def _skip(job: Job, error: Exception) -> Iterator[Event]:
    yield [{"kind": SKIPPED, "recording": job.recording.name, "reason": str(error)}]
    yield Done(job.recording.name)


def _finish(model: SpeechModel, settings: Settings, hearing: _Hearing, memory: AudioMemory) -> Iterator[Event]:
    """Keep a memory that was heard, then ask it. Its line comes last of those that it brings."""
    job, has_words = hearing.job, model.config.recognizer is not None
    try:
        job.memory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{job.memory.parent} cannot be made ({error.strerror}); choose another folder.") from None
    save_memory(memory, job.memory, model)
    name, segments = job.recording.name, recognized_segments(hearing.words)
    lines = [_transcript_line(name, "heard", segments)] if has_words else []
    yield [*lines, _memory_line(job, memory, hearing.file)]
    yield from _ask(model, settings, job, memory, is_transcribed=has_words)


def _ask(
    model: SpeechModel, settings: Settings, job: Job, memory: AudioMemory, is_transcribed: bool
) -> Iterator[Event]:
    """What is left to write down and to ask of a memory, and the job's end."""
    name = job.recording.name
    if job.transcribe and not is_transcribed:
        yield [_transcript_line(name, "memory", transcribe(model, memory))]
    for at in range(0, len(job.questions), QUESTIONS_AT_ONCE):
        # Kept together: in another batch an answer's last digits may be others, and what a kill interrupts comes out the same.
        answers = ask_together(model, memory, job.questions[at : at + QUESTIONS_AT_ONCE], settings.max_tokens)
        yield [
            {"kind": ANSWER, "recording": name, **answer_fields(answer), "warnings": list(answer.warnings)}
            for answer in answers
        ]
    yield Done(name)


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
