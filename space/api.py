"""Endpoints for programs and agents: /listen, /ask, /transcribe, /memory. JSON text out; each caller has a session of its own.

They share handlers and sessions with the page; the page's own events are private.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import gradio as gr

from space import downloads
from space.handlers import Handlers
from space.session import Session
from space.work import Superseded, nothing_to_ask
from speech_xl.errors import RecordingError, SpeechXLError

SUPERSEDED = "Another call in this session has replaced this one."


def refuse(error: SpeechXLError) -> gr.Error:
    """An error of ours as one that Gradio shows, without a traceback in the log."""
    return gr.Error(str(error), print_exception=False)


class Endpoints:
    """The functions that programs call, over HTTP and MCP."""

    def __init__(self, handlers: Handlers):
        self._handlers = handlers

    def listen(
        self, file: str, ratio: str, session: Session | None, request: gr.Request | None = None
    ) -> tuple[str, Session]:
        """Hear a recording (audio or video), or take in a memory file (.sxl), for later questions.

        Args:
            file: the recording, or a .sxl memory
            ratio: speech tokens per memory slot, like "8", or "raw", or a budget like "64MiB"; "" for the usual

        Returns:
            JSON: seconds heard, speech tokens, memory slots, bytes, ratio, warnings
        """
        session = self._handlers.enter(session, request)
        try:
            for _ in self._handlers.hear(file, ratio, session):
                pass
            if session.run.memory is None:
                raise RecordingError("Listening was cancelled; listen again.")
        except Superseded:
            raise refuse(RecordingError(SUPERSEDED)) from None
        except SpeechXLError as error:
            raise refuse(error) from error
        m = session.run.memory
        heard = {
            "seconds": m.seconds,
            "tokens": m.tokens,
            "slots": m.slots,
            "bytes": m.bytes,
            "ratio": m.ratio,
            "warnings": list(m.warnings),
        }
        return json.dumps(heard), session

    def ask(self, question: str, session: Session | None, request: gr.Request | None = None) -> str:
        """Ask about the recording that this session has heard.

        Args:
            question: one question in plain words

        Returns:
            JSON: the answer, evidence (start, end in seconds, weight) and seconds it took
        """
        session = session or self._handlers.known(request)
        try:
            run = session.run if session else None
            memory, partly = run.askable() if run else (None, False)
            if session is None or run is None or memory is None:
                raise RecordingError(nothing_to_ask(session))
            answer: Any = list(self._handlers.answer(session.model, run, memory, question))[-1]
        except SpeechXLError as error:
            raise refuse(error) from error
        evidence = [{"start": e.start, "end": e.end, "weight": e.weight} for e in answer.evidence]
        said = {"answer": answer.answer, "evidence": evidence, "seconds": answer.seconds}
        return json.dumps(said | {"heard_seconds": answer.heard_seconds, "still_listening": partly})

    def transcribe(self, source: str, session: Session | None, request: gr.Request | None = None) -> str:
        """What was said in the recording that this session has heard, with times.

        Args:
            source: "heard" for the words recognised while listening, "memory" for what the memory says, "" for the
                first of them that there is

        Returns:
            JSON: source, and segments (start, end in seconds, text)
        """
        session = session or self._handlers.known(request)
        try:
            if source not in ("", "heard", "memory"):
                raise RecordingError(f"There is no transcript {source[:40]!r}; take heard or memory.")
            if session is None or session.run.memory is None:
                raise RecordingError("There is nothing to transcribe yet; listen to a recording first.")
            if source == "heard" and not session.run.has_words:
                raise RecordingError("No words were recognised while listening; ask for the memory's transcript.")
            source = source or ("heard" if session.run.has_words else "memory")
            segments = session.run.recognized() if source == "heard" else list(self._handlers.transcribe(session))
        except Superseded:
            raise refuse(RecordingError(SUPERSEDED)) from None
        except SpeechXLError as error:
            raise refuse(error) from error
        return json.dumps({"source": source, "segments": [dataclasses.asdict(s) for s in segments]})

    def memory(self, session: Session | None, request: gr.Request | None = None) -> str:
        """The memory of the recording that this session has heard, as a .sxl file.

        Returns:
            the file; give it to listen later and go on asking without the audio
        """
        try:
            return downloads.download("sxl", session or self._handlers.known(request))
        except SpeechXLError as error:
            raise refuse(error) from error

    def ask_recording(self, file: str, question: str, ratio: str) -> str:
        """Answer one question about a recording or a .sxl memory; nothing is remembered between calls.

        Args:
            file: the recording, or a .sxl memory
            question: one question in plain words
            ratio: as for listen

        Returns:
            JSON: the answer, evidence (start, end in seconds, weight) and seconds it took
        """
        session = Session(self._handlers.model)
        try:
            self.listen(file, ratio, session)
            return self.ask(question, session)
        finally:
            session.forget()

    def transcribe_recording(self, file: str, source: str, ratio: str) -> str:
        """What is said in a recording or a .sxl memory; nothing is remembered between calls.

        Args:
            file: the recording, or a .sxl memory
            source: as for transcribe
            ratio: as for listen

        Returns:
            JSON: source, and segments (start, end in seconds, text)
        """
        session = Session(self._handlers.model)
        try:
            self.listen(file, ratio, session)
            return self.transcribe(source, session)
        finally:
            session.forget()


def add_endpoints(handlers: Handlers, session: gr.State) -> None:
    """Call inside the page's Blocks."""
    # Agents have no session: docs/space.md says which endpoints are theirs.
    warnings.filterwarnings("ignore", message="This MCP server includes a tool that has a gr.State input")
    endpoints = Endpoints(handlers)
    with gr.Group(visible=False):
        file = gr.File(label="file", type="filepath")
        ratio = gr.Textbox("", label="ratio")
        question = gr.Textbox(label="question")
        source = gr.Textbox("", label="source")
        said = gr.Textbox(label="json")
        kept = gr.File(label="memory")
        trigger = gr.Button()
    listening = {"concurrency_id": "listen", "concurrency_limit": 2}
    answering = {"concurrency_id": "ask", "concurrency_limit": 8}
    trigger.click(endpoints.listen, [file, ratio, session], [said, session], api_name="listen", **listening)
    trigger.click(endpoints.ask, [question, session], said, api_name="ask", **answering)
    trigger.click(endpoints.transcribe, [source, session], said, api_name="transcribe", **answering)
    trigger.click(endpoints.memory, session, kept, api_name="memory")
    trigger.click(endpoints.ask_recording, [file, question, ratio], said, api_name="ask_recording", **listening)
    trigger.click(
        endpoints.transcribe_recording, [file, source, ratio], said, api_name="transcribe_recording", **listening
    )
