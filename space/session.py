"""What one visitor has: a recording, its memory, its words, and the conversation about it. Nobody else's.

It knows the core's objects and no user interface.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from speech_xl.asking import Answer
from speech_xl.conversation import Heard, Listening
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.transcript import Segment, recognized_segments


@dataclass
class Session:
    """Lives in the page's per-session state and is dropped with it."""

    model: SpeechModel  # the page's own, or another that the visitor has chosen
    listening: Listening | None = None
    memory: AudioMemory | None = None
    source: str | None = None  # path of the recording, for the player
    player_shown: str | None = None  # source that the page's player has
    words_shown: int = -1  # recognised words that the page's transcript has; -1: it is to be drawn
    events: list[Heard] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    read_back: list[Segment] | None = None  # the transcript from the memory, shown in place of the recognised words
    folder: tempfile.TemporaryDirectory | None = None
    run: object = field(default_factory=object)  # stands for one recording, from the press of Listen on
    waiting: object | None = None  # the run that has been asked for and has not begun
    cancelled: object | None = None  # the run that the visitor has cancelled

    def forget(self) -> None:
        """Stop listening and drop everything: a new run."""
        self.run = object()
        if self.listening is not None:
            self.listening.cancel()
        if self.folder is not None:
            self.folder.cleanup()
        self.listening = self.memory = self.source = self.player_shown = self.folder = self.read_back = None
        self.words_shown = -1
        self.events, self.answers = [], []

    def begin(self) -> object:
        """The run that was asked for before, or a new one."""
        if self.waiting is not self.run:
            self.forget()
        self.waiting = None
        return self.run

    def cancel(self) -> bool:
        """Stop the recording that is waiting or being heard -> whether there was one."""
        if self.waiting is not self.run and self.source is None:
            return False
        if self.memory is not None or self.cancelled is self.run:
            return False
        self.cancelled = self.run
        if self.listening is not None:
            self.listening.cancel()
        return True

    def askable(self) -> tuple[AudioMemory | None, bool]:
        """-> (memory to ask, whether the recording is still being heard)."""
        run, memory, listening, events = self.run, self.memory, self.listening, self.events
        if self.run is not run:  # another thread has dropped some of these
            return None, False
        if memory is not None:
            return memory, False
        if listening is not None and events:
            return listening.snapshot(), True
        return None, False

    @property
    def name(self) -> str:
        """Of the recording, as a person knows it."""
        return self.memory.recording.path if self.memory else Path(self.source or "recording").name

    @property
    def has_words(self) -> bool:
        """Whether words were recognised while listening."""
        return bool(self.events) and self.events[-1].words is not None

    def segments(self) -> list[Segment]:
        """The transcript to show: the memory's where it was asked for, else the words as recognised."""
        if self.read_back is not None:
            return list(self.read_back)
        return self.recognized()

    def recognized(self) -> list[Segment]:
        """The words as they were recognised while listening."""
        return list(recognized_segments(w for e in list(self.events) for w in e.words or ()))

    @property
    def folder_path(self) -> Path:
        """Where this session's files lie, made when the first one is written."""
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="speech-xl-")
        return Path(self.folder.name)

    def memory_path(self, recording: str) -> Path:
        """Where the memory of a recording is written for download."""
        return self.folder_path / (Path(recording).stem[:80] + ".sxl")
