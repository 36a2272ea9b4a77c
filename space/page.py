"""The page's layout and event handlers. It moves events from the core to components and decides nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from space import pictures
from space.session import Session
from speech_xl.audio import probe
from speech_xl.conversation import DEFAULT, Listening, SpeechModel, ask
from speech_xl.errors import RecordingError, SpeechXLError
from speech_xl.memory import load_memory

EXAMPLES = Path(__file__).parent / "examples"
EXAMPLE = EXAMPLES / "order_desk.ogg"
REDRAW_SECONDS = 0.25
SESSION_SECONDS = 3600  # an abandoned session is forgotten after this

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
HEAD = "<script>" + (Path(__file__).parent / "page.js").read_text(encoding="utf-8") + "</script>"


def file_url(path: str) -> str:
    return f"/gradio_api/file={path}"


def ratio_choices(model: SpeechModel) -> list[tuple[str, str]]:
    usual = model.config.sst.default_ratio if model.config.sst else None
    named = [("raw (keep everything)", "raw")]
    named += [(f"{r} to 1" + (" (usual)" if r == usual else ""), str(r)) for r in model.ratios]
    return named


class Handlers:
    """Event handlers of one page; each takes and returns the visitor's own Session."""

    def __init__(self, model: SpeechModel, max_hours: float):
        self.model = model
        self.max_hours = max_hours

    def listen(self, path: str | None, ratio: str, session: Session | None) -> Iterator[tuple[Any, ...]]:
        """Hear a recording, or take in a memory -> session, status, figures, timeline, player, download, suggestions."""
        session = session or Session()
        session.forget()
        if not path:
            raise gr.Error("Choose a recording first: drop a file, record one, or take the example.")
        name = Path(path).name
        try:
            if Path(path).suffix.lower() == ".sxl":
                session.memory = load_memory(Path(path), self.model)
                said = f"{name}: a memory of {pictures.clock(session.memory.seconds)}. Ask; the audio is not needed."
                yield self._state(session, said, finished=True)
                return
            self._check_length(path)
            session.listening = Listening(self.model, path, None if ratio == "raw" else int(ratio) if ratio else DEFAULT)
            session.source = path
            yield self._state(session, f"Listening to {name} ...")
            drawn = 0.0
            for heard in session.listening:
                session.events.append(heard)
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield self._state(session, f"Listening to {name} ...")
            if session.listening is None or session.listening.cancelled:
                yield self._state(session, "Cancelled. Nothing is left running.")
                return
            session.memory = session.listening.memory
        except SpeechXLError as error:
            session.forget()
            yield self._state(session, str(error))
            raise gr.Error(str(error), print_exception=False) from error
        notes = " ".join(session.memory.warnings)
        said = f"{name}: {pictures.clock(session.memory.seconds)} heard, all of it. Ask as often as you like. {notes}"
        yield self._state(session, said, finished=True)

    def _check_length(self, path: str) -> None:
        seconds = probe(path).seconds
        if seconds is not None and seconds > self.max_hours * 3600:
            raise RecordingError(
                f"This recording is {pictures.clock(seconds)} long and this page takes {self.max_hours:g} h; cut it, or run the app yourself."
            )

    def _state(self, session: Session, status: str, finished: bool = False) -> tuple[Any, ...]:
        last = session.events[-1] if session.events else None
        source = file_url(session.source) if session.source else None
        download = session.save_memory(self.model) if finished else None
        return (
            session,
            status,
            pictures.figures(last),
            pictures.timeline(session.events),
            pictures.player(source, Path(session.source).name if session.source else ""),
            gr.DownloadButton(value=download, interactive=finished),
        )

    def cancel(self, session: Session | None) -> str:
        if session is None or session.listening is None or session.memory is not None:
            return "Nothing is being heard."
        session.listening.cancel()
        return "Cancelling ..."

    def ask(self, question: str, chat: list[dict[str, Any]], session: Session | None) -> Iterator[tuple[Any, ...]]:
        """Answer one question in pieces -> textbox, chat, evidence buttons, timeline."""
        session = session or Session()
        chat = [*chat, {"role": "user", "content": question}]
        try:
            memory, partly = session.askable()
            if memory is None:
                raise RecordingError("There is nothing to ask about yet; listen to a recording first.")
            asking = ask(self.model, memory, question)
            text = f"(of the first {pictures.clock(memory.seconds)}) " if partly else ""
            chat = [*chat, {"role": "assistant", "content": text}]
            for piece in asking:
                chat[-1] = {"role": "assistant", "content": chat[-1]["content"] + piece}
                yield "", chat, gr.skip(), gr.skip()
        except SpeechXLError as error:
            chat = [*chat, {"role": "assistant", "content": f"{error}"}]
            yield question, chat, pictures.evidence_buttons(()), gr.skip()
            return
        session.answers.append(asking.answer)
        evidence = asking.answer.evidence
        yield "", chat, pictures.evidence_buttons(evidence), pictures.timeline(session.events, evidence)

    def export(self, kind: str, session: Session | None) -> str:
        if session is None or not session.answers:
            raise gr.Error("There is no conversation to export yet; ask something first.")
        return session.export(kind)


def build_page(model: SpeechModel, max_hours: float) -> gr.Blocks:
    """The whole page for one loaded model."""
    handlers = Handlers(model, max_hours)
    example = json.loads((EXAMPLES / "order_desk.json").read_text(encoding="utf-8"))
    with gr.Blocks(title="Speech-XL", delete_cache=(600, SESSION_SECONDS)) as page:
        session = gr.State(None, time_to_live=SESSION_SECONDS, delete_callback=lambda s: s and s.forget())
        gr.Markdown(
            "# Speech-XL\nAsk questions about a recording of any length. It is heard once; what is kept is a small memory.\n\n"
            f"**What this model understands.** {model.config.description or 'See its model card.'}"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                upload = gr.File(
                    label="Recording (audio or video) or memory (.sxl)", file_types=["audio", "video", ".sxl"], type="filepath"
                )
                microphone = gr.Audio(label="Or record", sources=["microphone"], type="filepath")
                with gr.Row():
                    usual = str(model.config.sst.default_ratio) if model.config.sst else "raw"
                    ratio = gr.Dropdown(ratio_choices(model), value=usual, label="Compression", min_width=160)
                    take_example = gr.Button(f"Example: {example['title']}", min_width=160)
                with gr.Row():
                    start = gr.Button("Listen", variant="primary")
                    stop = gr.Button("Cancel", variant="stop")
                status = gr.Markdown("Choose a recording, then press Listen.", elem_id="sxl-status")
                figures = gr.HTML(pictures.figures(None))
                timeline = gr.HTML(pictures.timeline(()))
                player = gr.HTML(pictures.player(None))
            with gr.Column(scale=6, min_width=320):
                chat = gr.Chatbot(label="Conversation", height=420, buttons=["copy", "copy_all"])
                evidence = gr.HTML(pictures.evidence_buttons(()))
                with gr.Row():
                    question = gr.Textbox(
                        label="Question", placeholder="What drink is order 47?", scale=5, max_lines=3, lines=1
                    )
                    send = gr.Button("Ask", variant="primary", scale=1, min_width=90)
                gr.Examples([[q] for q in example["suggestions"]], question, label="Questions about the example")
                with gr.Row():
                    download = gr.DownloadButton("Keep the memory (.sxl)", interactive=False)
                    markdown = gr.Button("Export Markdown")
                    as_json = gr.Button("Export JSON")
                    clear = gr.Button("Clear chat")
                exported = gr.File(label="Export", interactive=False, visible="hidden")

        outputs = [session, status, figures, timeline, player, download]
        hearing = start.click(
            lambda path, recorded: path or recorded, [upload, microphone], upload, api_visibility="private"
        ).success(handlers.listen, [upload, ratio, session], outputs, api_name="listen", concurrency_limit=2)
        take_example.click(lambda: str(EXAMPLE), None, upload, api_visibility="private").success(
            handlers.listen, [upload, ratio, session], outputs, api_visibility="private", concurrency_limit=2
        )
        stop.click(handlers.cancel, session, status, api_name="cancel", concurrency_limit=None)
        del hearing
        for trigger, name in ((send.click, "ask"), (question.submit, "ask_by_key")):
            trigger(
                handlers.ask, [question, chat, session], [question, chat, evidence, timeline],
                api_name=name, concurrency_limit=8,
            )  # fmt: skip
        for button, kind in ((markdown, "md"), (as_json, "json")):
            button.click(lambda s, kind=kind: gr.File(handlers.export(kind, s), visible=True), session, exported)
        clear.click(lambda: [], None, chat)
    return page
