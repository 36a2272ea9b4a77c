"""What is left to do of each recording, from what the results say is done. It hears and asks nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speech_xl.audio import file_sha256
from speech_xl.batch.recordings import Recording
from speech_xl.batch.results import ANSWER, MEMORY, SKIPPED, TRANSCRIPT, Key, Line, Results


@dataclass(frozen=True)
class Job:
    """One recording's part that is not done. Paths are absolute."""

    recording: Recording
    memory: Path  # its .sxl file
    output: Path  # the results' folder
    is_heard: bool  # the .sxl file is there
    transcribe: bool
    questions: tuple[str, ...]


def questions_of(recording: Recording, questions: Sequence[str]) -> tuple[str, ...]:
    """What a recording is asked: what all are, then its own, each once."""
    return tuple(dict.fromkeys([*questions, *recording.questions]))


def make_jobs(
    recordings: Sequence[Recording], questions: Sequence[str], transcribe: bool, results: Results
) -> list[Job]:
    """What is left, in order. Lines about recordings that were skipped, or are other files now, are dropped first.

    A recording whose .sxl file was deleted is heard again only if there is something left to ask it.
    """
    keys = defaultdict(list)
    for key in results.all_keys():
        keys[key[0]].append(key)
    known = {line["recording"]: line for line in results.lines((r.name, MEMORY, "") for r in recordings)}
    jobs = []
    for recording in recordings:
        name, line = recording.name, known.get(recording.name)
        if line is not None and has_changed(recording, line):
            results.drop(keys[name])
            line = None
        results.drop([(name, SKIPPED, "")])
        left = tuple(q for q in questions_of(recording, questions) if not results.has((name, ANSWER, q)))
        is_unread = transcribe and not results.has((name, TRANSCRIPT, ""))
        if line is not None and not left and not is_unread:
            continue
        memory = recording.path if recording.is_memory else recording.memory_file(results.memories)
        is_heard = recording.is_memory or (line is not None and memory.is_file())
        jobs.append(Job(recording, memory, results.folder, is_heard, is_unread, left))
    results.arrange([])
    return jobs


def has_changed(recording: Recording, line: Line) -> bool:
    """Whether the file under a recording's name is another one than was heard. One that is gone has not changed."""
    try:
        now = recording.path.stat()
    except OSError:
        return False
    if now.st_size != line["size"]:
        return True
    if now.st_mtime_ns == line["modified"]:
        return False
    return recording.is_memory or file_sha256(recording.path) != line["sha256"]


def in_order(recordings: Sequence[Recording], questions: Sequence[str]) -> list[Key]:
    """Where the lines of a finished batch stand, whatever order they came in."""
    keys: list[Key] = []
    for recording in recordings:
        keys += [(recording.name, kind, "") for kind in (MEMORY, TRANSCRIPT, SKIPPED)]
        keys += [(recording.name, ANSWER, question) for question in questions_of(recording, questions)]
    return keys
