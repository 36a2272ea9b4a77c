"""The page's layout: which components there are, where they stand, and which handler each event calls.

It knows gradio; what happens is handlers.py, what is drawn is pictures.py, how it looks is page.css.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

import gradio as gr

from space import pictures
from space.about import about, compression_choices, introduction, usual_compression
from space.api import add_endpoints
from space.compare import Comparison
from space.handlers import Handlers
from space.session import Session
from speech_xl.backend import BACKENDS
from speech_xl.decoders import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from speech_xl.example import EXAMPLE, load_example, suggested_questions
from speech_xl.model import SpeechModel

FOLDER = Path(__file__).parent
SESSION_SECONDS = 3600  # an abandoned session is forgotten after this
SWEEP_SECONDS = 600  # files older than a session are looked for this often
# Gradio checks types by name with what the machine knows of them, which may be less than what can be heard.
for kind, suffixes in (("audio", AUDIO_SUFFIXES), ("video", VIDEO_SUFFIXES)):
    for suffix in suffixes.split():
        mimetypes.add_type(f"{kind}/{suffix}", f".{suffix}")
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def look() -> dict[str, Any]:
    """Arguments of `launch` that make the page look as it should; nothing is fetched from elsewhere."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    theme = gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", radius_size="md", font=sans, font_mono=mono
    ).set(
        body_background_fill="*neutral_50", block_shadow="none", block_border_width="1px",
        block_label_background_fill="transparent", block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent", block_title_text_color="*body_text_color_subdued",
        block_title_text_color_dark="*body_text_color_subdued", block_title_text_weight="500", block_title_text_size="13px",
        block_title_padding="0", button_large_text_weight="600", button_small_text_weight="500",
    )  # fmt: skip
    script = "<script>" + (FOLDER / "page.js").read_text(encoding="utf-8") + "</script>"
    return {
        "theme": theme,
        "css": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "head": script,
        "footer_links": ["api", "settings"],
        "allowed_paths": [str(EXAMPLE.parent)],
    }


def build_page(model: SpeechModel, max_hours: float, can_choose: bool = False) -> gr.Blocks:
    """The whole page. `can_choose`: visitors may load other models, see choice.py."""
    handlers = Handlers(model, max_hours, can_choose)
    with gr.Blocks(title="Speech-XL", delete_cache=(SWEEP_SECONDS, SESSION_SECONDS), analytics_enabled=False) as page:
        session = gr.State(None, time_to_live=SESSION_SECONDS, delete_callback=lambda s: s and s.forget())
        add_endpoints(handlers, session)  # first, so that the public names are theirs
        intro = gr.HTML(introduction(model), elem_classes="sxl-head", padding=False)
        with gr.Tab("Ask"):
            fitted, heard = _talk(handlers, session)
        if handlers.can_compare:
            with gr.Tab("Compare"):
                _compare(handlers, session)
        with gr.Tab("Model"):
            _choose(handlers, [intro, *fitted], heard)
        page.unload(handlers.leave)
    return page


def _fit(model: SpeechModel) -> tuple[gr.Dropdown, gr.Textbox, gr.Dataset]:
    """What depends on the model: the choice of compression, the question box and the suggested questions."""
    questions = suggested_questions(model.config)
    return (
        gr.Dropdown(compression_choices(model), value=usual_compression(model)),
        gr.Textbox(placeholder=questions[0]),
        gr.Dataset(label=_suggestions_label(model), samples=[[q] for q in questions]),
    )


def _suggestions_label(model: SpeechModel) -> str:
    return "What this model can be asked" if model.config.suggestions else "About the example"


def _talk(handlers: Handlers, session: gr.State) -> tuple[list[Any], list[Any]]:
    """-> what `_fit` fits to a model, and what `Handlers.listen` draws."""
    model, questions = handlers.model, suggested_questions(handlers.model.config)
    has_recognizer = model.config.recognizer is not None
    small = {"size": "sm", "min_width": 64}
    with gr.Row(equal_height=False, elem_classes="sxl-columns"):
        with gr.Column(scale=5, min_width=320, elem_classes="sxl-left"):
            with gr.Column(elem_classes="sxl-source", min_width=300):
                with gr.Tab("File"):
                    upload = gr.File(
                        label="Recording (audio or video) or memory (.sxl)", show_label=False, height=132,
                        file_types=["audio", "video", ".sxl"], type="filepath",
                    )  # fmt: skip
                with gr.Tab("Microphone"):
                    microphone = gr.Audio(
                        label="Record",
                        show_label=False,
                        sources=["microphone"],
                        type="filepath",
                        elem_id="sxl-microphone",
                    )
                compression = gr.Dropdown(
                    compression_choices(model), value=usual_compression(model), allow_custom_value=True, min_width=150,
                    label="Compression, or a budget such as 64MiB",
                )  # fmt: skip
                with gr.Row(elem_classes="sxl-buttons"):
                    start = gr.Button("Listen", variant="primary", min_width=100, scale=2)
                    stop = gr.Button("Cancel", min_width=80, scale=1)
                    take_example = gr.Button("Example", min_width=90, scale=1, elem_id="sxl-example")
            with gr.Column(elem_classes="sxl-heard", min_width=300):
                status = gr.Markdown(
                    f"Choose a recording and press Listen, or press Example: {load_example().title.lower()}.",
                    elem_id="sxl-status",
                )
                caption = gr.HTML(pictures.caption((), has_recognizer), padding=False)
                timeline = gr.HTML(pictures.timeline(()), padding=False)
                player = gr.HTML(pictures.player(None), padding=False)
                evidence = gr.HTML(pictures.evidence_buttons(()), padding=False)
                figures = gr.HTML(pictures.figures(None), padding=False)
        with gr.Column(scale=6, min_width=320, elem_classes="sxl-chat"):
            with gr.Tab("Conversation"):
                chat = gr.Chatbot(
                    label="Conversation", height=440, buttons=["copy", "copy_all"], render_markdown=False, show_label=False,
                    feedback_options=None, placeholder="Answers appear here, with the times they come from.",
                )  # fmt: skip
                with gr.Row(elem_classes="sxl-ask"):
                    question = gr.Textbox(
                        label="Question", placeholder=questions[0], show_label=False, container=False, scale=5, lines=1,
                        max_lines=3, min_width=200, elem_id="sxl-question",
                        html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
                    )  # fmt: skip
                    send = gr.Button("Ask", variant="primary", scale=1, min_width=72)
                suggestions = gr.Dataset(
                    label=_suggestions_label(model), components=[question], samples=[[q] for q in questions]
                )
                with gr.Row(elem_classes="sxl-small"):
                    keep = gr.Button("Keep memory", interactive=False, **small | {"min_width": 116})
                    markdown = gr.Button("Markdown", **small)
                    as_json = gr.Button("JSON", **small)
                    retry = gr.Button("Retry", **small)
                    clear = gr.Button("Clear", **small)
            with gr.Tab("Transcript"):
                transcript, saved = _transcript(handlers, session)
            file = gr.File(label="Download", visible="hidden")

    heard = [session, status, figures, timeline, player, evidence, caption, transcript, keep]
    # A press of Listen ends what is being heard at once, so it must not wait behind it.
    one_at_a_time = {"concurrency_id": "listen", "concurrency_limit": 2, "trigger_mode": "multiple", **PRIVATE}
    at_once = {"queue": False, "trigger_mode": "multiple", **PRIVATE}
    prepared = [upload, session, status]
    listening = handlers.listen, [upload, compression, session], heard
    start.click(handlers.prepare, [upload, microphone, session], prepared, **at_once).success(
        *listening, **one_at_a_time
    )

    def prepare_example(session: Session | None, request: gr.Request) -> tuple[str | None, Session, str]:
        return handlers.prepare(str(EXAMPLE), None, session, request)

    take_example.click(prepare_example, session, prepared, **at_once).success(*listening, **one_at_a_time)
    # The newest of file and microphone is what Listen hears.
    upload.upload(lambda: None, None, microphone, **PRIVATE)
    microphone.stop_recording(lambda: None, None, upload, **PRIVATE)
    compression.change(handlers.check_compression, [compression, session], None, **PRIVATE)
    stop.click(handlers.cancel, session, status, **at_once)
    answering = {"concurrency_id": "ask", "concurrency_limit": 8, **PRIVATE}
    answered = [question, chat, evidence, timeline]
    gr.on([send.click, question.submit], handlers.ask, [question, chat, session], answered, **answering)
    retry.click(handlers.retry, [chat, session], answered, **answering)
    for button, kind in {keep: "sxl", markdown: "md", as_json: "json", **saved}.items():
        # Made when it is asked for, and fetched by the browser at once.
        button.click(lambda s, k=kind: handlers.download(k, s), session, file, **PRIVATE).success(
            None, file, None, js="sxlDownload", **PRIVATE
        )
    suggestions.click(lambda sample: sample[0], suggestions, question, **at_once)
    clear.click(handlers.clear, session, [chat, evidence, timeline], **PRIVATE)
    return [compression, question, suggestions], heard


def _transcript(handlers: Handlers, session: gr.State) -> tuple[gr.HTML, dict[gr.Button, str]]:
    """-> the transcript, and the buttons that save it, with the kind of file that each makes."""
    gr.Textbox(  # page.js listens to it: no server is asked
        label="Search the transcript", placeholder="Search", show_label=False, container=False, elem_id="sxl-search"
    )
    words = pictures.no_words_yet(handlers.model.config.recognizer is not None)
    lines = gr.HTML(
        pictures.transcript((), words, False), elem_id="sxl-transcript", min_height=440, max_height=440, autoscroll=True,
        js_on_load="sxlWatch(element)",
    )  # fmt: skip
    with gr.Row(elem_classes="sxl-small"):
        small = {"size": "sm", "min_width": 70}
        read = gr.Button("Transcribe from memory", **small | {"min_width": 170})
        heard = gr.Button("As heard", **small)
        saved = {gr.Button(name, **small): name.lower() for name in ("SRT", "VTT", "TXT")}
    two_at_a_time = {"concurrency_id": "transcribe", "concurrency_limit": 2, "trigger_mode": "multiple"}
    read.click(handlers.read_memory, session, lines, **two_at_a_time, **PRIVATE)
    heard.click(handlers.as_heard, session, lines, queue=False, **PRIVATE)
    return lines, saved


def _compare(handlers: Handlers, session: gr.State) -> None:
    comparison = Comparison(handlers)
    gr.Markdown(
        "The recording of the first tab is heard again at every ratio and with every summarizer that needs no training, "
        "and asked the same question."
    )
    with gr.Row(elem_classes="sxl-ask"):
        question = gr.Textbox(
            label="Question to compare",
            show_label=False,
            container=False,
            placeholder=suggested_questions(handlers.model.config)[0],
            scale=5,
            min_width=200,
        )
        run = gr.Button("Compare", variant="primary", scale=1, min_width=100)
    result = gr.HTML(comparison.empty(), elem_id="sxl-compared", padding=False)
    gr.on(
        [run.click, question.submit], comparison.run, [question, session], result,
        concurrency_id="listen", concurrency_limit=2, **PRIVATE,
    )  # fmt: skip


def _choose(handlers: Handlers, fitted: list[Any], heard: list[Any]) -> None:
    """What the model is and what fits this machine; where it is allowed, another model, which `fitted` then fits."""
    session, facts = heard[0], about(handlers.model, handlers.max_hours)
    if not handlers.choice.is_open:
        gr.HTML(facts, padding=False)
        return
    with gr.Row(elem_classes="sxl-choose"):
        name = gr.Textbox(
            label="small, nano, a checkpoint folder or a Hub id", placeholder="empty: the usual model", scale=4,
            min_width=220,
        )  # fmt: skip
        backend = gr.Dropdown(["auto", *BACKENDS], value="auto", label="Backend", scale=1, min_width=110)
        load = gr.Button("Load", variant="primary", scale=1, min_width=90)
    shown = gr.HTML(facts, padding=False)

    def choose(name: str, backend: str, session: Session | None, request: gr.Request) -> tuple[Any, ...]:
        model, drawn = handlers.choose(name, backend, session, request)
        return about(model, handlers.max_hours), introduction(model), *_fit(model), *drawn

    gr.on(
        [load.click, name.submit], choose, [name, backend, session], [shown, *fitted, *heard],
        concurrency_id="choose", concurrency_limit=1, **PRIVATE,
    )  # fmt: skip
