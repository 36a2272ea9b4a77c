"""What one visitor has: a recording, its memory, and the conversation about it. Nobody else's.

It knows the core's objects and no user interface.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from space.pictures import times
from speech_xl.asking import Answer
from speech_xl.clock import clock
from speech_xl.conversation import Heard, Listening
from speech_xl.memory import AudioMemory, save_memory
from speech_xl.model import SpeechModel


@dataclass
class Session:
    """Lives in the page's per-session state and is dropped with it."""

    model: SpeechModel  # the page's own, or another that the visitor has chosen
    listening: Listening | None = None
    memory: AudioMemory | None = None
    source: str | None = None  # path of the recording, for the player
    player_shown: str | None = None  # source that the page's player has
    events: list[Heard] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
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
        self.listening = self.memory = self.source = self.player_shown = self.folder = None
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

    @property
    def _downloads(self) -> Path:
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="speech-xl-")
        return Path(self.folder.name)

    def askable(self) -> tuple[AudioMemory | None, bool]:
        """-> (memory to ask, whether the recording is still being heard)."""
        memory, listening, events = self.memory, self.listening, self.events  # another thread may forget them
        if memory is not None:
            return memory, False
        if listening is not None and events:
            return listening.snapshot(), True
        return None, False

    def memory_path(self, recording: str) -> Path:
        return self._downloads / (Path(recording).stem[:80] + ".sxl")

    def save_memory(self) -> str:
        path = self.memory_path(self.memory.recording.path)
        save_memory(self.memory, path, self.model)
        return str(path)

    def export(self, kind: str) -> str:
        """The conversation as a Markdown or JSON file, with times -> its path."""
        name = self.memory.recording.path if self.memory else "recording"
        if kind == "json":
            text = json.dumps({"recording": name, "answers": [asdict(a) for a in self.answers]}, indent=2)
        else:
            lines = [f"# {name}", ""]
            for a in self.answers:
                spans = ", ".join(times(e) for e in a.evidence[:3])
                partly = self.memory is None or a.heard_seconds < self.memory.seconds
                said = f"Of the first {clock(a.heard_seconds)}: {a.answer}" if partly else a.answer
                lines += [f"**{a.question}**", "", said + (f" ({spans})" if spans else ""), ""]
            text = "\n".join(lines)
        path = self._downloads / f"conversation.{'json' if kind == 'json' else 'md'}"
        path.write_text(text, encoding="utf-8")
        return str(path)
