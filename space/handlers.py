"""What happens on an event: one visitor's Session and the core go in, values for components come out.

It knows sessions, the core and pictures; no layout. Every message to the visitor is one sentence.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from html import escape
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr

from space import pictures
from space.choice import ModelChoice
from space.session import Session
from space.zero import borrow
from speech_xl.arguments import parse_bytes, parse_ratio
from speech_xl.asking import Answer
from speech_xl.audio import probe
from speech_xl.conversation import Listening, ask
from speech_xl.errors import RecordingError, ScheduleError, SpeechXLError
from speech_xl.memory import AudioMemory, load_memory
from speech_xl.model import DEFAULT, SpeechModel

REDRAW_SECONDS = 0.25
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
    if session is not None and session.source is not None:
        return "Nothing of the recording can be asked about yet; wait until more of it is heard."
    return "There is nothing to ask about yet; listen to a recording first."


class Superseded(Exception):
    """The visitor has asked for another recording or model while this one was being heard."""


class Handlers:
    """Event handlers of one page; each takes and returns the visitor's own Session."""

    def __init__(self, model: SpeechModel, max_hours: float, can_choose: bool = False):
        self.model = model  # the one the page starts with
        self.choice = ModelChoice(model, can_choose and borrow(model) is None)
        self.max_hours = max_hours
        self._borrowed = borrow(model)
        self._visitors: WeakValueDictionary[str, Session] = WeakValueDictionary()  # by gradio's session name

    @property
    def can_compare(self) -> bool:
        """Comparing listens in this process, which a page that borrows its GPU must not."""
        return self._borrowed is None

    def hear(self, path: str | None, compression: str | None, session: Session) -> Iterator[str]:
        """Hear a recording or take in a memory into `session`, which changes as it goes -> status sentences.

        Superseded: the visitor has gone on to something else, and the session belongs to that.
        """
        run = session.begin()
        try:
            for status in self._hear(path, compression, session, run):
                if session.run is not run:
                    raise Superseded
                yield status
        except SpeechXLError:
            if session.run is not run:
                raise Superseded from None
            session.forget()
            raise

    def _hear(self, path: str | None, compression: str | None, session: Session, run: object) -> Iterator[str]:
        if session.cancelled is run:  # while it waited for its turn
            yield CANCELLED
            return
        if not path:
            raise RecordingError("Choose a recording first: drop a file, record one, or take the example.")
        name = pictures.shown_name(path)
        if Path(path).suffix.lower() == ".sxl":
            session.memory = load_memory(Path(path), session.model)
            yield f"{name}: a memory of {pictures.clock(session.memory.seconds)}. Ask; the audio is not needed."
            return
        ratio, budget = parse_compression(compression)
        self._check_length(probe(Path(path)).seconds)
        session.source = path
        yield f"Listening to {name} ..."
        hear = self._hear_borrowed if self._borrowed else self._hear_here
        memory = yield from hear(path, ratio, budget, session, run)
        if session.run is not run:
            raise Superseded
        if memory is None:
            yield CANCELLED
            return
        session.memory = memory
        notes = " ".join(memory.warnings)
        heard_time = pictures.clock(memory.seconds)
        yield f"{name}: {heard_time} heard, all of it. Ask as often as you like. {escape(notes)}".strip()

    def _hear_here(
        self, path: str, ratio: Any, budget: int | None, session: Session, run: object
    ) -> Generator[str, None, AudioMemory | None]:
        status = f"Listening to {pictures.shown_name(path)} ... you can ask already."
        events = session.events  # this run's own list, whatever the session goes on to
        listening = Listening(session.model, path, ratio, budget)
        session.listening = listening if session.run is run else session.listening
        if session.run is not run or session.cancelled is run:
            listening.cancel()
        for heard in listening:
            self._check_length(heard.seconds)  # a file may hold more than it declares
            events.append(heard)
            yield status
        return None if listening.cancelled else listening.memory

    def _hear_borrowed(
        self, path: str, ratio: Any, budget: int | None, session: Session, run: object
    ) -> Generator[str, None, AudioMemory | None]:
        kept, events = session.memory_path(path), session.events
        hearing = self._borrowed.hear(path, ratio, budget, str(kept))
        try:
            for heard in hearing:
                if session.cancelled is run:
                    return None
                events.append(heard)
                yield f"Listening to {pictures.shown_name(path)} ..."
        finally:
            hearing.close()
        return load_memory(kept, session.model)

    def answer(self, session: Session, memory: AudioMemory, question: str) -> Iterator[str | Answer]:
        """Pieces of the answer's text, then the whole Answer, which the session keeps."""
        if self._borrowed:
            said = self._borrowed.answer(session.save_memory(), question)
        else:
            said = self._answer_here(session.model, memory, question)
        answers = session.answers  # of this recording, whatever the session goes on to
        for piece in said:
            if isinstance(piece, Answer):
                answers.append(piece)
            yield piece

    def _answer_here(self, model: SpeechModel, memory: AudioMemory, question: str) -> Iterator[str | Answer]:
        asking = ask(model, memory, question)
        yield from asking
        yield asking.answer

    def _check_length(self, seconds: float | None) -> None:
        if seconds is not None and seconds > self.max_hours * 3600:
            raise RecordingError(
                f"This recording is {pictures.clock(seconds)} long or more and this page takes {self.max_hours:g} h; "
                "cut it, or run the app yourself."
            )

    def enter(self, session: Session | None, request: gr.Request | None) -> Session:
        """The visitor's session, a new one at first, remembered until the visitor leaves."""
        session = session or self.known(request) or Session(self.model)
        if request is not None:
            self._visitors[request.session_hash] = session
        return session

    def known(self, request: gr.Request | None) -> Session | None:
        """The session of a visitor whose first event has not ended, and so has not been handed back."""
        return self._visitors.get(request.session_hash) if request is not None else None

    def prepare(
        self, path: str | None, recorded: str | None, session: Session | None, request: gr.Request
    ) -> tuple[str | None, Session, str]:
        """Listen was pressed -> what will be heard, session, status. What was heard before is dropped at once."""
        session = self.enter(session, request)
        session.forget()
        session.waiting = session.run
        return path or recorded, session, "Waiting for a turn ..."

    def leave(self, request: gr.Request) -> None:
        """The page was closed: stop listening and drop everything."""
        session = self._visitors.pop(request.session_hash, None)
        if session is not None:
            session.forget()

    def listen(
        self, path: str | None, compression: str, session: Session | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """-> session, status, figures, timeline, player, evidence, download; redrawn a few times a second."""
        session = self.enter(session, request)
        drawn, status = 0.0, ""
        try:
            for status in self.hear(path, compression, session):
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield self._drawn(session, status)
        except SpeechXLError as error:
            yield self._drawn(session, f"**{escape(str(error))}**")
            return
        except Superseded:
            return
        yield self._drawn(session, status)

    def _drawn(self, session: Session, status: str) -> tuple[Any, ...]:
        finished = session.memory is not None
        last = session.events[-1] if session.events else None
        # Drawn once a recording: the player is not reset under the listener's hands, nor an answer's evidence.
        player = evidence = gr.skip()
        if session.player_shown != (session.source or ""):
            session.player_shown = session.source or ""
            source = pictures.file_url(session.source) if session.source else None
            player = pictures.player(source, Path(session.source or "").name)
            evidence = pictures.evidence_buttons(())
        glow = session.answers[-1].evidence if session.answers else ()
        return (
            session,
            status,
            pictures.figures(last, session.memory),
            pictures.timeline(session.events, glow, finished),
            player,
            evidence,
            gr.DownloadButton(value=session.save_memory() if finished else None, interactive=finished),
        )

    def cancel(self, session: Session | None) -> str:
        if session is None or not session.cancel():
            return "Nothing is being heard."
        return CANCELLED

    def ask(self, question: str, chat: list[dict[str, Any]], session: Session | None) -> Iterator[tuple[Any, ...]]:
        """Answer one question in pieces -> textbox, chat, evidence buttons, timeline."""
        session = session or Session(self.model)
        chat = [*chat, {"role": "user", "content": question}]
        answer: Answer | None = None
        try:
            memory, partly = session.askable()
            if memory is None:
                raise RecordingError(nothing_to_ask(session))
            text = f"Of the first {pictures.clock(memory.seconds)}: " if partly else ""
            said = {"role": "assistant", "content": text}
            box = ""  # emptied once: the next question may be typed while this one is answered
            for piece in self.answer(session, memory, question):
                if isinstance(piece, Answer):
                    answer = piece
                    continue
                said = {"role": "assistant", "content": said["content"] + piece}
                yield box, [*chat, said], gr.skip(), gr.skip()
                box = gr.skip()
        except SpeechXLError as error:
            chat = [*chat, {"role": "assistant", "content": str(error)}]
            yield question, chat, pictures.evidence_buttons(()), gr.skip()
            return
        evidence = answer.evidence
        drawn = pictures.timeline(session.events, evidence, session.memory is not None)
        yield box, [*chat, said], pictures.evidence_buttons(evidence), drawn

    def retry(self, chat: list[dict[str, Any]], session: Session | None) -> Iterator[tuple[Any, ...]]:
        """Ask the last question again, in place of its old answer."""
        asked = [i for i, message in enumerate(chat) if message["role"] == "user"]
        if not asked or session is None:
            yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return
        content = chat[asked[-1]]["content"]  # gradio hands back a list of parts
        question = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if session.answers and session.answers[-1].question == question:
            session.answers.pop()
        yield from self.ask(question, chat[: asked[-1]], session)

    def clear(self, session: Session | None) -> tuple[list[Any], str, Any]:
        """Forget the conversation, not the recording -> chat, evidence buttons, timeline."""
        if session is None:
            return [], pictures.evidence_buttons(()), gr.skip()
        session.answers.clear()
        return [], pictures.evidence_buttons(()), pictures.timeline(session.events, (), session.memory is not None)

    def export(self, kind: str, session: Session | None) -> str:
        if session is None or not session.answers:
            raise gr.Error("There is no conversation to export yet; ask something first.", print_exception=False)
        return session.export(kind)

    def choose(
        self, name: str, backend: str, session: Session | None, request: gr.Request
    ) -> tuple[SpeechModel, tuple[Any, ...]]:
        """Another model for this visitor -> it, and what `listen` draws: a recording must be heard again."""
        session = self.enter(session, request)
        try:
            model = self.choice.load(name, backend)
        except SpeechXLError as error:
            raise gr.Error(str(error), print_exception=False) from error
        session.forget()
        session.model = model
        return model, self._drawn(
            session, f"{escape(model.config.name)} is loaded. Choose a recording and press Listen."
        )

    def check_compression(self, text: str | None, session: Session | None) -> None:
        """Say at once, in the page, what is wrong with a ratio or a budget."""
        model = session.model if session else self.model
        try:
            ratio, budget = parse_compression(text)
            if budget is None:
                model.choose_ratio(ratio, None, None)
        except ScheduleError as error:
            raise gr.Error(str(error), print_exception=False) from error
