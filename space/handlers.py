"""What happens on an event: one visitor's Session and the core go in, values for components come out.

It knows sessions, the work and pictures; no layout. Every message to the visitor is one sentence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr

from space import downloads, pictures
from space.choice import ModelChoice
from space.session import Session
from space.work import CANCELLED, Superseded, Worker, nothing_to_ask, parse_compression
from space.zero import borrow
from speech_xl.asking import Answer
from speech_xl.errors import RecordingError, ScheduleError, SpeechXLError
from speech_xl.model import SpeechModel
from speech_xl.prompt import LONGEST_ANSWER

REDRAW_SECONDS = 0.25
TRANSCRIPT_GROWTH = 1.02  # a long transcript is drawn again when it has grown by this factor: all draws stay linear


class Handlers(Worker):
    """Event handlers of one page; each takes and returns the visitor's own Session."""

    def __init__(self, model: SpeechModel, max_hours: float, can_choose: bool = False):
        super().__init__(model, max_hours)
        self.choice = ModelChoice(model, can_choose and borrow(model) is None)
        self._visitors: WeakValueDictionary[str, Session] = WeakValueDictionary()  # by gradio's session name

    @property
    def can_compare(self) -> bool:
        """Comparing listens in this process, which a page that borrows its GPU must not."""
        return self._borrowed is None

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
        """-> session, status, figures, timeline, player, evidence, caption, transcript, memory button; redrawn in time."""
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
            pictures.caption(session.events, session.model.config.recognizer is not None),
            self._growing_transcript(session, finished),
            gr.Button(interactive=finished),
        )

    def _growing_transcript(self, session: Session, finished: bool) -> Any:
        """The words so far, if there are enough new ones and the visitor does not look at the memory's."""
        words = sum(len(e.words or ()) for e in session.events)
        is_enough = finished or words > session.words_shown * TRANSCRIPT_GROWTH
        if session.read_back is not None or not is_enough:
            return gr.skip()
        session.words_shown = words
        return self._transcript(session)

    def _transcript(self, session: Session) -> str:
        segments = session.segments()
        if session.read_back is not None:
            note = pictures.FROM_MEMORY
        elif segments:
            note = pictures.AS_RECOGNISED
        else:
            note = pictures.no_words_yet(session.model.config.recognizer is not None and session.memory is None)
        return pictures.transcript(segments, note, session.source is not None)

    def as_heard(self, session: Session | None) -> str:
        """The words as they were recognised, in place of the memory's."""
        session = session or Session(self.model)
        session.read_back = None
        return self._transcript(session)

    def read_memory(self, session: Session | None) -> Iterator[str]:
        """What the memory says was said, as it is read back."""
        session = session or Session(self.model)
        drawn = 0.0
        try:
            for _ in self.transcribe(session):
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    yield self._transcript(session)
                    drawn = time.monotonic()
        except Superseded:
            return
        except SpeechXLError as error:
            raise gr.Error(str(error), print_exception=False) from error
        yield self._transcript(session)

    def download(self, kind: str, session: Session | None) -> str:
        """The path of a file that was asked for."""
        try:
            return downloads.download(kind, session)
        except SpeechXLError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def cancel(self, session: Session | None) -> str:
        """Stop what is being heard -> the line that says so."""
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
        if answer.finish_reason == "length":
            said["content"] += f" ... (cut: an answer ends at {LONGEST_ANSWER} tokens)"
        said["content"] += "".join(f"\n\n{warning}" for warning in answer.warnings)
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
