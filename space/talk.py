"""The page's first tab: a recording is chosen, heard, asked and read. Which components there are, and what each event calls.

It knows gradio; what happens is handlers.py, what is drawn pictures.py, timeline.py and transcript.py, how it looks page.css.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from space import pictures
from space.about import compression_choices, usual_compression
from space.handlers import Handlers
from space.session import Session
from space.timeline import timeline
from space.transcript import no_words_yet, transcript
from speech_xl.example import EXAMPLE, load_example, suggested_questions
from speech_xl.model import SpeechModel

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = {"queue": False, "trigger_mode": "multiple", **PRIVATE}
SMALL = {"size": "sm", "min_width": 64}


@dataclass
class Talk:
    """The first tab's components that others change."""

    fitted: list[Any]  # what `fit` fits to a model
    heard: list[Any]  # what Handlers.draw draws
    asked: list[Any]  # the conversation: chat, evidence
    offered: list[Any]  # what `offer` fits to a recording
    keep: gr.Button
    status: gr.Markdown
    file: gr.File  # what the browser is to fetch


def fit(model: SpeechModel) -> tuple[gr.Dropdown, gr.Textbox, gr.Dataset]:
    """What depends on the model: the choice of compression, the question box and the suggested questions."""
    questions = suggested_questions(model.config)
    return (
        gr.Dropdown(compression_choices(model), value=usual_compression(model)),
        gr.Textbox(placeholder=questions[0]),
        gr.Dataset(label=_suggestions_label(model), samples=[[q] for q in questions], visible=True),
    )


def offer(model: SpeechModel, is_example: bool) -> tuple[gr.Textbox, gr.Dataset]:
    """The question box and the suggestions: questions about the example are offered with the example alone."""
    is_fitting = is_example or bool(model.config.suggestions)
    placeholder = suggested_questions(model.config)[0] if is_fitting else "Ask about what was said"
    return gr.Textbox(placeholder=placeholder), gr.Dataset(visible=is_fitting)


def _suggestions_label(model: SpeechModel) -> str:
    return "What this model can be asked" if model.config.suggestions else "About the example"


def build_talk(handlers: Handlers, session: gr.State, has_shelf: bool) -> Talk:
    """The tab's components, and what its events call."""
    with gr.Column(elem_classes="sxl-talk"):
        with gr.Row(equal_height=False, elem_classes="sxl-source"):
            upload, microphone = _sources()
            with gr.Column(scale=6, min_width=300, elem_classes="sxl-start"):
                compression, start, stop, example = _buttons(handlers.model)
                status = gr.Markdown(
                    f"Choose a recording and press Listen, or press Example: {load_example().title.lower()}.",
                    elem_id="sxl-status",
                )
        with gr.Column(elem_classes="sxl-heard"):
            caption = gr.HTML("", padding=False)
            line = gr.HTML(
                timeline((), None, (), False, False),
                padding=False,
                elem_id="sxl-timeline",
                js_on_load="sxlWatch(element, sxlPaint)",
            )
            player = gr.Audio(  # without its waveform, for which a browser would decode all of it at once
                label="Recording",
                interactive=False,
                buttons=[],
                show_label=False,
                elem_id="sxl-player",
                waveform_options=gr.WaveformOptions(show_recording_waveform=False),
                container=False,
            )
            figures = gr.HTML("", padding=False)
        with gr.Row(equal_height=False, elem_classes="sxl-columns"):
            with gr.Column(scale=1, min_width=320, elem_classes="sxl-chat"):
                question, send, chat, evidence, suggestions = _conversation(handlers.model)
                with gr.Row(elem_classes="sxl-small"):
                    keep = gr.Button(
                        "Keep on shelf", interactive=False, visible=has_shelf, **SMALL | {"min_width": 116}
                    )
                    download = gr.Button("Download memory", interactive=False, **SMALL | {"min_width": 136})
                    markdown = gr.Button("Markdown", **SMALL)
                    as_json = gr.Button("JSON", **SMALL)
                    retry = gr.Button("Retry", **SMALL)
                    clear = gr.Button("Clear", **SMALL)
            with gr.Column(scale=1, min_width=320, elem_classes="sxl-words"):
                words, saved = _transcript(handlers, session, line)
        file = gr.File(label="Download", visible="hidden")

    heard = [session, status, line, player, caption, figures, words, keep, download]
    asked = [chat, evidence]
    # A press of Listen ends what is being heard at once, so it must not wait behind it.
    one_at_a_time = {"concurrency_id": "listen", "concurrency_limit": 2, "trigger_mode": "multiple", **PRIVATE}
    prepared = [upload, session, status, *asked]
    listening = handlers.listen, [upload, compression, session], heard
    start.click(handlers.prepare, [upload, microphone, session], prepared, **AT_ONCE).success(
        *listening, **one_at_a_time
    )

    def prepare_example(session: Session | None, request: gr.Request) -> tuple[Any, ...]:
        return handlers.prepare(str(EXAMPLE), None, session, request)

    example.click(prepare_example, session, prepared, **AT_ONCE).success(*listening, **one_at_a_time)
    offered = [question, suggestions]
    for button, is_example in ((start, False), (example, True)):
        button.click(lambda s, e=is_example: offer(s.model if s else handlers.model, e), session, offered, **AT_ONCE)
    # The newest of file and microphone is what Listen hears.
    upload.upload(lambda: None, None, microphone, **PRIVATE)
    microphone.stop_recording(lambda: None, None, upload, **PRIVATE)
    compression.change(handlers.check_compression, [compression, session], None, **PRIVATE)
    stop.click(handlers.cancel, session, status, **AT_ONCE)
    player.play(lambda s: handlers.plays(True, s), session, None, **AT_ONCE)
    gr.on([player.pause, player.stop], lambda s: handlers.plays(False, s), session, None, **AT_ONCE)
    answering = {"concurrency_id": "ask", "concurrency_limit": 8, **PRIVATE}
    answered = [question, *asked, line, player]
    gr.on([send.click, question.submit], handlers.ask, [question, chat, session], answered, **answering)
    suggestions.click(lambda sample: sample[0], suggestions, question, **AT_ONCE).success(
        handlers.ask, [question, chat, session], answered, **answering
    )
    retry.click(handlers.retry, [chat, session], answered, **answering)
    clear.click(handlers.clear, session, [*asked, line], **PRIVATE)
    for button, kind in {download: "sxl", markdown: "md", as_json: "json", **saved}.items():
        # Made when it is asked for, and fetched by the browser at once.
        fetch(button.click(lambda s, k=kind: handlers.download(k, s), session, file, **PRIVATE), file)
    return Talk([compression, question, suggestions], heard, asked, offered, keep, status, file)


def fetch(event: gr.events.Dependency, file: gr.File) -> None:
    """When `event` has put a path into `file`, the browser fetches it."""
    event.success(None, file, None, js="sxlDownload", **PRIVATE)


def _sources() -> tuple[gr.File, gr.Audio]:
    with gr.Column(scale=5, min_width=300):
        with gr.Tab("File"):
            upload = gr.File(
                label="Recording (audio or video) or memory (.sxl)",
                show_label=False,
                height=132,
                file_types=["audio", "video", ".sxl"],
                type="filepath",
            )
        with gr.Tab("Microphone"):
            microphone = gr.Audio(
                label="Record", show_label=False, sources=["microphone"], type="filepath", elem_id="sxl-microphone"
            )
    return upload, microphone


def _buttons(model: SpeechModel) -> tuple[gr.Dropdown, gr.Button, gr.Button, gr.Button]:
    compression = gr.Dropdown(
        compression_choices(model),
        value=usual_compression(model),
        allow_custom_value=True,
        min_width=150,
        label="Compression, or a budget such as 64MiB",
    )
    with gr.Row(elem_classes="sxl-buttons"):
        start = gr.Button("Listen", variant="primary", min_width=100, scale=2)
        stop = gr.Button("Cancel", min_width=80, scale=1)
        example = gr.Button("Example", min_width=90, scale=1, elem_id="sxl-example")
    return compression, start, stop, example


def _conversation(model: SpeechModel) -> tuple[gr.Textbox, gr.Button, gr.Chatbot, gr.HTML, gr.Dataset]:
    questions = suggested_questions(model.config)
    gr.HTML('<h2 class="sxl-title">Conversation</h2>', padding=False)
    chat = gr.Chatbot(
        label="Conversation",
        height=300,
        buttons=["copy", "copy_all"],
        render_markdown=False,
        show_label=False,
        feedback_options=None,
        placeholder="Answers appear here, with the times they come from.",
        elem_id="sxl-answers",
    )
    evidence = gr.HTML(pictures.evidence_buttons(()), padding=False)
    with gr.Row(elem_classes="sxl-ask"):
        question = gr.Textbox(
            label="Question",
            placeholder=questions[0],
            show_label=False,
            container=False,
            scale=5,
            lines=1,
            max_lines=3,
            min_width=200,
            elem_id="sxl-question",
            html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
        )
        send = gr.Button("Ask", variant="primary", scale=1, min_width=72)
    suggestions = gr.Dataset(
        label=_suggestions_label(model),
        components=[question],
        samples=[[q] for q in questions],
        elem_id="sxl-suggestions",
    )
    return question, send, chat, evidence, suggestions


def _transcript(handlers: Handlers, session: gr.State, line: gr.HTML) -> tuple[gr.HTML, dict[gr.Button, str]]:
    """-> the transcript, and the buttons that save it, with the kind of file that each makes."""
    found = '<span id="sxl-found" role="status"></span>'  # page.js says what the search found
    gr.HTML(f'<div class="sxl-titled"><h2 class="sxl-title">Transcript</h2>{found}</div>', padding=False)
    with gr.Row(elem_classes="sxl-search"):
        gr.Textbox(  # page.js listens to both: no server is asked
            label="Search the transcript",
            placeholder="Search",
            show_label=False,
            container=False,
            scale=4,
            min_width=180,
            elem_id="sxl-search",
        )
        gr.Checkbox(
            True,
            label="Follow the player",
            container=False,
            scale=1,
            min_width=160,
            elem_id="sxl-follow",
            interactive=True,
        )
    first = transcript((), (), no_words_yet(handlers.model.config.recognizer is not None), False)
    words = gr.HTML(
        first,
        elem_id="sxl-transcript",
        min_height=440,
        max_height=440,
        autoscroll=True,
        js_on_load="sxlWatch(element, sxlPaint)",
    )
    with gr.Row(elem_classes="sxl-small"):
        read = gr.Button("Transcribe from memory", **SMALL | {"min_width": 170})
        heard = gr.Button("As heard", **SMALL)
        saved = {gr.Button(name, **SMALL): name.lower() for name in ("SRT", "VTT", "TXT")}
    two_at_a_time = {"concurrency_id": "transcribe", "concurrency_limit": 2, "trigger_mode": "multiple"}
    read.click(handlers.read_memory, session, [words, line], **two_at_a_time, **PRIVATE)
    heard.click(handlers.as_heard, session, [words, line], queue=False, **PRIVATE)
    return words, saved
