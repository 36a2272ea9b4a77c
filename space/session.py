"""What one visitor has: a recording, its memory, its words, and the conversation about it. Nobody else's.

It knows the core's objects and no user interface. All that belongs to one recording is one object, a Run, which another
recording replaces at a stroke: whoever holds a Run sees one recording, never parts of two.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from speech_xl.asking import Answer
from speech_xl.chapters import Chapter, find_chapters
from speech_xl.conversation import Heard, Listening
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.transcript import Segment, recognized_segments


@dataclass(eq=False)
class Run:
    """One recording, from the press of Listen or Open on, and the conversation about it."""

    listening: Listening | None = None
    memory: AudioMemory | None = None
    source: str | None = None  # path of the recording, for the player
    title: str | None = None  # its name on the shelf, where it comes from there
    events: list[Heard] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    read_back: list[Segment] | None = None  # the transcript from the memory, shown in place of the recognised words
    folder: tempfile.TemporaryDirectory[str] | None = None
    is_cancelled: bool = False
    is_over: bool = False  # another has taken its place
    is_player_drawn: bool = False
    is_playing: bool = False
    words_drawn: int = -1  # recognised words that the page's transcript has; -1: it is to be drawn
    _divided: tuple[list[Segment], list[Chapter]] | None = None

    def drop(self) -> None:
        """Stop listening and delete the files."""
        self.is_over = True
        if self.listening is not None:
            self.listening.cancel()
        if self.folder is not None:
            self.folder.cleanup()

    def cancel(self) -> bool:
        """Stop the recording if it is still being heard -> whether it was."""
        if self.memory is not None or self.is_cancelled:
            return False
        self.is_cancelled = True
        if self.listening is not None:
            self.listening.cancel()
        return True

    def askable(self) -> tuple[AudioMemory | None, bool]:
        """-> (memory to ask, whether the recording is still being heard)."""
        memory, listening = self.memory, self.listening
        if self.is_over:
            return None, False
        if memory is not None:
            return memory, False
        if listening is not None and self.events:
            return listening.snapshot(), True
        return None, False

    @property
    def name(self) -> str:
        """Of the recording, as a person knows it."""
        if self.title is not None:
            return self.title
        return self.memory.recording.path if self.memory else Path(self.source or "recording").name

    @property
    def has_words(self) -> bool:
        """Whether words were recognised while listening."""
        return bool(self.events) and self.events[-1].words is not None

    def segments(self) -> list[Segment]:
        """The transcript to show: the memory's where it was asked for, else the words as recognised."""
        read_back = self.read_back
        return self.recognized() if read_back is None else list(read_back)

    def recognized(self) -> list[Segment]:
        """The words as they were recognised while listening."""
        return list(recognized_segments(w for e in list(self.events) for w in e.words or ()))

    def chapters(self) -> list[Chapter]:
        """Of the transcript to show, once all has been heard: a talk that goes on changes them."""
        if self.memory is None:
            return []
        segments = self.segments()
        if self._divided is None or self._divided[0] != segments:
            self._divided = segments, find_chapters(segments)
        return self._divided[1]

    @property
    def folder_path(self) -> Path:
        """Where this recording's files lie, made when the first one is written."""
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="speech-xl-")
        return Path(self.folder.name)

    def memory_path(self, recording: str) -> Path:
        """Where the memory of a recording is written for download."""
        return self.folder_path / (Path(recording).stem[:80] + ".sxl")


@dataclass(eq=False)
class Session:
    """Lives in the page's per-session state and is dropped with it."""

    model: SpeechModel  # the page's own, or another that the visitor has chosen
    run: Run = field(default_factory=Run)
    waiting: Run | None = None  # a run that has been asked for and has not begun

    def forget(self) -> None:
        """Stop listening and drop everything: a new run."""
        old, self.run = self.run, Run()
        old.drop()

    def begin(self) -> Run:
        """The run that was asked for before, or a new one."""
        if self.waiting is not self.run:
            self.forget()
        self.waiting = None
        return self.run

    def cancel(self) -> bool:
        """Stop the recording that is waiting or being heard -> whether there was one."""
        run = self.run
        return (self.waiting is run or run.source is not None) and run.cancel()
