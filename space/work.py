"""What is done for a visitor, by the core in this process or on a borrowed GPU: hear, answer, transcribe.

It knows sessions and the core; no components and no layout. Every message to the visitor is one sentence.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from html import escape
from pathlib import Path
from typing import Any

from space import pictures
from space.downloads import memory_file
from space.session import Run, Session
from space.zero import borrow
from speech_xl.arguments import parse_bytes, parse_ratio
from speech_xl.asking import Answer
from speech_xl.audio import probe
from speech_xl.clock import clock
from speech_xl.conversation import Listening, ask
from speech_xl.errors import RecordingError, SpeechXLError, without_folder
from speech_xl.memory import AudioMemory, load_memory
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.transcript import Segment, transcribe

CANCELLED = "Cancelled. Nothing is left running."


def parse_compression(text: str | None) -> tuple[int | str | None, int | None]:
    """What was typed or chosen, like 8, raw, nothing or 64MiB -> (ratio, memory budget)."""
    text = (text or "").strip()
    if not text or text == DEFAULT:
        return DEFAULT, None
    if text == "raw" or text.isdigit():
        return parse_ratio(text), None
    return DEFAULT, parse_bytes(text)


def nothing_to_ask(session: Session | None) -> str:
    """What a visitor reads who asks too early."""
    if session is not None and session.run.source is not None:
        return "Nothing of the recording can be asked about yet; wait until more of it is heard."
    return "There is nothing to ask about yet; listen to a recording first."


class Superseded(Exception):
    """The visitor has asked for something else in place of this: another recording, model or transcript."""


class Worker:
    """Hears, answers and transcribes; each call is about one visitor's own Session."""

    def __init__(self, model: SpeechModel, max_hours: float):
        self.model = model  # the one the page starts with
        self.max_hours = max_hours
        self._borrowed = borrow(model)

    def hear(self, path: str | None, compression: str | None, session: Session) -> Iterator[str]:
        """Hear a recording or take in a memory into `session`, which changes as it goes -> status sentences.

        Superseded: the visitor has gone on to something else, and the session belongs to that.
        """
        run = session.begin()
        try:
            with without_folder(Path(path or "").parent):
                for status in self._hear(path, compression, session, run):
                    if run.is_over:
                        raise Superseded
                    yield status
        except SpeechXLError:
            if run.is_over:
                raise Superseded from None
            session.forget()
            raise

    def _hear(self, path: str | None, compression: str | None, session: Session, run: Run) -> Iterator[str]:
        if run.is_cancelled:  # while it waited for its turn
            yield CANCELLED
            return
        if not path:
            raise RecordingError("Choose a recording first: drop a file, record one, or take the example.")
        name = pictures.shown_name(path)
        if Path(path).suffix.lower() == ".sxl":
            self.make_ready(session.model, run, load_memory(Path(path), session.model))
            yield f"{name}: a memory of {clock(run.memory.seconds)}. Ask; the audio is not needed."
            return
        ratio, budget = parse_compression(compression)
        self._check_length(probe(Path(path)).seconds)
        run.source = path
        yield f"Listening to {name} ..."
        hear = self._hear_borrowed if self._borrowed else self._hear_here
        memory = yield from hear(path, ratio, budget, session.model, run)
        if run.is_over:
            raise Superseded
        if memory is None:
            yield CANCELLED
            return
        self.make_ready(session.model, run, memory)
        notes = " ".join(memory.warnings)
        heard_time = clock(memory.seconds)
        yield f"{name}: {heard_time} heard, all of it. Ask as often as you like. {escape(notes)}".strip()

    def _hear_here(
        self, path: str, ratio: Any, budget: int | None, model: SpeechModel, run: Run
    ) -> Generator[str, None, AudioMemory | None]:
        status = f"Listening to {pictures.shown_name(path)} ... you can ask already."
        run.listening = listening = Listening(model, path, ratio, budget)
        if run.is_over or run.is_cancelled:  # looked at behind the line above: either sees the other
            listening.cancel()
        for heard in listening:
            self._check_length(heard.seconds)  # a file may hold more than it declares
            run.events.append(heard)
            yield status
        return None if listening.cancelled else listening.memory

    def _hear_borrowed(
        self, path: str, ratio: Any, budget: int | None, model: SpeechModel, run: Run
    ) -> Generator[str, None, AudioMemory | None]:
        kept = run.memory_path(path)
        hearing = self._borrowed.hear(path, ratio, budget, str(kept))
        try:
            for heard in hearing:
                if run.is_cancelled:
                    return None
                run.events.append(heard)
                yield f"Listening to {pictures.shown_name(path)} ..."
        finally:
            hearing.close()
        return load_memory(kept, model)

    def make_ready(self, model: SpeechModel, run: Run, memory: AudioMemory) -> None:
        """All of a recording has been heard, or its memory opened."""
        run.memory = memory
        if self._borrowed is None:
            model.ahead.add(memory)

    def _check_length(self, seconds: float | None) -> None:
        if seconds is not None and seconds > self.max_hours * 3600:
            raise RecordingError(
                f"This recording is {clock(seconds)} long or more and this page takes {self.max_hours:g} h; "
                "cut it, or run the app yourself."
            )

    def answer(self, model: SpeechModel, run: Run, memory: AudioMemory, question: str) -> Iterator[str | Answer]:
        """Pieces of the answer's text, then the whole Answer, which the run keeps."""
        if self._borrowed:
            said = self._borrowed.answer(str(memory_file(run, model)), question)
        else:
            said = self._answer_here(model, memory, question)
        for piece in said:
            if isinstance(piece, Answer):
                run.answers.append(piece)
            yield piece

    def _answer_here(self, model: SpeechModel, memory: AudioMemory, question: str) -> Iterator[str | Answer]:
        asking = ask(model, memory, question)
        yield from asking
        yield asking.answer

    def transcribe(self, session: Session) -> Iterator[Segment]:
        """What the memory says was said, as it is read back; the run keeps it. Superseded as in `hear`."""
        run = session.run
        memory, _ = run.askable()
        if memory is None:
            raise RecordingError(nothing_to_ask(session))
        read = run.read_back = []
        if self._borrowed:
            segments = self._borrowed.transcribe(str(memory_file(run, session.model)))
        else:
            segments = transcribe(session.model, memory)
        for segment in segments:
            if run.is_over or run.read_back is not read:
                raise Superseded
            read.append(segment)
            yield segment
