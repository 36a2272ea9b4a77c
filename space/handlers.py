"""What happens on an event: one visitor's Session and the core go in, values for components come out.

It knows sessions, the work and pictures; no layout. Every message to the visitor is one sentence.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import gradio as gr

from space import downloads, pictures, transcript
from space.choice import ModelChoice
from space.session import Run, Session
from space.timeline import timeline
from space.work import CANCELLED, Superseded, Worker, nothing_to_ask, parse_compression
from space.zero import borrow
from speech_xl.asking import Answer
from speech_xl.clock import clock
from speech_xl.errors import RecordingError, ScheduleError, SpeechXLError
from speech_xl.model import SpeechModel
from speech_xl.prompt import LONGEST_ANSWER

REDRAW_SECONDS = 0.25
TRANSCRIPT_GROWTH = 1.02  # a long transcript is drawn again when it has grown by this factor: all draws stay linear


class Drawn(NamedTuple):
    """What the page shows of a recording: values for these components, in this order."""

    session: Session
    status: str
    timeline: str
    player: Any
    caption: str
    figures: str
    transcript: Any
    keep: Any  # the button that puts the memory on the shelf, ...
    download: Any  # ... and the one that hands it out


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
    ) -> tuple[str | None, Session, str, list[Any], str]:
        """Listen was pressed -> what will be heard, session, status, chat, evidence. What was heard before is dropped."""
        session = self.enter(session, request)
        session.forget()
        session.waiting = session.run
        return path or recorded, session, "Waiting for a turn ...", [], pictures.evidence_buttons(())

    def leave(self, request: gr.Request) -> None:
        """The page was closed: stop listening and drop everything."""
        session = self._visitors.pop(request.session_hash, None)
        if session is not None:
            session.forget()

    def listen(
        self, path: str | None, compression: str, session: Session | None, request: gr.Request
    ) -> Iterator[Drawn]:
        """What the page shows of a recording while it is heard, redrawn in time."""
        session = self.enter(session, request)
        drawn, status = 0.0, ""
        try:
            for status in self.hear(path, compression, session):
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield self.draw(session, status)
        except SpeechXLError as error:
            yield self.draw(session, f"**{escape(str(error))}**")
            return
        except Superseded:
            return
        yield self.draw(session, status)

    def draw(self, session: Session, status: str) -> Drawn:
        """All that the page shows of the visitor's recording."""
        run = session.run
        finished = run.memory is not None
        last = run.events[-1] if run.events else None
        player = gr.skip()  # drawn once a recording: it is not reset under the listener's hands
        if not run.is_player_drawn:
            run.is_player_drawn, player = True, run.source
        return Drawn(
            session,
            status,
            self._timeline(run),
            player,
            pictures.caption(run.events, finished),
            pictures.figures(last, run.memory),
            self._growing_transcript(session, finished),
            gr.Button(interactive=finished),
            gr.Button(interactive=finished),
        )

    def _timeline(self, run: Run) -> str:
        last = run.answers[-1] if run.answers else None
        return timeline(run.events, last, run.chapters(), run.memory is not None, run.source is not None)

    def _growing_transcript(self, session: Session, finished: bool) -> Any:
        """The words so far, if there are enough new ones and the visitor does not look at the memory's."""
        run = session.run
        words = sum(len(e.words or ()) for e in run.events)
        is_enough = finished or words > run.words_drawn * TRANSCRIPT_GROWTH
        if run.read_back is not None or not is_enough:
            return gr.skip()
        run.words_drawn = words
        return self._transcript(session)

    def _transcript(self, session: Session) -> str:
        run = session.run
        segments = run.segments()
        if run.read_back is not None:
            note = transcript.FROM_MEMORY
        elif segments:
            note = transcript.AS_RECOGNISED
        else:
            note = transcript.no_words_yet(session.model.config.recognizer is not None and run.memory is None)
        return transcript.transcript(segments, run.chapters(), note, run.source is not None)

    def as_heard(self, session: Session | None) -> tuple[str, str]:
        """The words as they were recognised, in place of the memory's -> transcript, timeline."""
        session = session or Session(self.model)
        session.run.read_back = None
        return self._transcript(session), self._timeline(session.run)

    def read_memory(self, session: Session | None) -> Iterator[tuple[str, Any]]:
        """What the memory says was said, as it is read back -> transcript, timeline."""
        session = session or Session(self.model)
        drawn = 0.0
        try:
            for _ in self.transcribe(session):
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    yield self._transcript(session), gr.skip()
                    drawn = time.monotonic()
        except Superseded:
            return
        except SpeechXLError as error:
            raise gr.Error(str(error), print_exception=False) from error
        yield self._transcript(session), self._timeline(session.run)

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
        """Answer one question in pieces -> textbox, chat, evidence buttons, timeline, player."""
        session = session or Session(self.model)
        run = session.run
        chat = [*chat, {"role": "user", "content": question}]
        answer: Answer | None = None
        try:
            memory, partly = run.askable()
            if memory is None:
                raise RecordingError(nothing_to_ask(session))
            text = f"Of the first {clock(memory.seconds)}: " if partly else ""
            said = {"role": "assistant", "content": text}
            # The box is emptied once: the next question may be typed while this one is answered.
            yield "", chat, gr.skip(), gr.skip(), gr.skip()
            for piece in self.answer(session.model, run, memory, question):
                if isinstance(piece, Answer):
                    answer = piece
                    continue
                if run.is_over:
                    return
                said = {"role": "assistant", "content": said["content"] + piece}
                yield gr.skip(), [*chat, said], gr.skip(), gr.skip(), gr.skip()
        except SpeechXLError as error:
            chat = [*chat, {"role": "assistant", "content": str(error)}]
            yield question, chat, pictures.evidence_buttons(()), gr.skip(), gr.skip()
            return
        if answer is None or run.is_over:  # another recording has taken this one's place, and its conversation's
            return
        if answer.finish_reason == "length":
            said["content"] += f" ... (cut: an answer ends at {LONGEST_ANSWER} tokens)"
        said["content"] += "".join(f"\n\n{warning}" for warning in answer.warnings)
        is_playable = run.source is not None
        reasons = pictures.evidence_buttons(answer.evidence, run.recognized(), is_playable, memory)
        # The player waits where the answer comes from, unless somebody is listening to it.
        player = gr.skip()
        if answer.evidence and is_playable and not run.is_playing:
            player = gr.Audio(playback_position=answer.evidence[0].start)
        yield gr.skip(), [*chat, said], reasons, self._timeline(run), player

    def retry(self, chat: list[dict[str, Any]], session: Session | None) -> Iterator[tuple[Any, ...]]:
        """Ask the last question again, in place of its old answer."""
        asked = [i for i, message in enumerate(chat) if message["role"] == "user"]
        if not asked or session is None:
            yield (gr.skip(),) * 5
            return
        content = chat[asked[-1]]["content"]  # gradio hands back a list of parts
        question = content if isinstance(content, str) else "".join(part["text"] for part in content)
        if session.run.answers and session.run.answers[-1].question == question:
            session.run.answers.pop()
        yield from self.ask(question, chat[: asked[-1]], session)

    def clear(self, session: Session | None) -> tuple[list[Any], str, Any]:
        """Forget the conversation, not the recording -> chat, evidence buttons, timeline."""
        if session is None:
            return [], pictures.evidence_buttons(()), gr.skip()
        session.run.answers.clear()
        return [], pictures.evidence_buttons(()), self._timeline(session.run)

    def plays(self, is_playing: bool, session: Session | None) -> None:
        """The player was started or stopped."""
        if session is not None:
            session.run.is_playing = is_playing

    def choose(
        self, name: str, backend: str, session: Session | None, request: gr.Request
    ) -> tuple[SpeechModel, Drawn]:
        """Another model for this visitor -> it, and what the page shows: a recording must be heard again."""
        session = self.enter(session, request)
        try:
            model = self.choice.load(name, backend)
        except SpeechXLError as error:
            raise gr.Error(str(error), print_exception=False) from error
        session.forget()
        session.model = model
        return model, self.draw(session, f"{escape(model.config.name)} is loaded. Choose a recording and press Listen.")

    def check_compression(self, text: str | None, session: Session | None) -> None:
        """Say at once, in the page, what is wrong with a ratio or a budget."""
        model = session.model if session else self.model
        try:
            ratio, budget = parse_compression(text)
            if budget is None:
                model.choose_ratio(ratio, None, None)
        except ScheduleError as error:
            raise gr.Error(str(error), print_exception=False) from error
