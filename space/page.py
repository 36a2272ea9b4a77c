"""The whole page: its tabs, its look, and the two little tabs that compare and choose models.

The first tab is talk.py, the shelf shelf_tab.py; what happens is handlers.py, how it looks page.css.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

import gradio as gr

from space.about import about, introduction
from space.api import add_endpoints
from space.compare import Comparison
from space.handlers import Handlers
from space.session import Session
from space.shelf import Shelf
from space.shelf_tab import ShelfHandlers, browser_secret, build_shelf
from space.talk import PRIVATE, build_talk, fit
from speech_xl.backend import BACKENDS
from speech_xl.decoders import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from speech_xl.example import EXAMPLE, suggested_questions
from speech_xl.model import SpeechModel

FOLDER = Path(__file__).parent
SESSION_SECONDS = 3600  # an abandoned session is forgotten after this
SWEEP_SECONDS = 600  # files older than a session are looked for this often
# Gradio checks types by name with what the machine knows of them, which may be less than what can be heard.
for kind, suffixes in (("audio", AUDIO_SUFFIXES), ("video", VIDEO_SUFFIXES)):
    for suffix in suffixes.split():
        mimetypes.add_type(f"{kind}/{suffix}", f".{suffix}")


def look() -> dict[str, Any]:
    """Arguments of `launch` that make the page look as it should; nothing is fetched from elsewhere."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    theme = gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", radius_size="md", font=sans, font_mono=mono
    ).set(  # quiet text and buttons dark or light enough for WCAG AA, which the theme's own are not
        body_background_fill="*neutral_50",
        block_shadow="none",
        block_border_width="1px",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_label_background_fill="transparent",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*body_text_color_subdued",
        block_title_text_color_dark="*body_text_color_subdued",
        block_title_text_weight="500",
        block_title_text_size="13px",
        block_title_padding="0",
        button_large_text_weight="600",
        button_small_text_weight="500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_secondary_background_fill_dark="*neutral_700",
        button_secondary_background_fill_hover_dark="*neutral_600",
        button_secondary_text_color_dark="white",
        button_secondary_text_color_hover_dark="white",
        link_text_color_dark="*primary_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )
    script = "<script>" + (FOLDER / "page.js").read_text(encoding="utf-8") + "</script>"
    return {
        "theme": theme,
        "css": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "head": script,
        "footer_links": ["api", "settings"],
        "allowed_paths": [str(EXAMPLE.parent)],
    }


def build_page(model: SpeechModel, max_hours: float, can_choose: bool = False, shelf: Shelf | None = None) -> gr.Blocks:
    """The whole page. `can_choose`: visitors may load other models, see choice.py; `shelf`: where they keep memories."""
    handlers = Handlers(model, max_hours, can_choose)
    with gr.Blocks(title="Speech-XL", delete_cache=(SWEEP_SECONDS, SESSION_SECONDS), analytics_enabled=False) as page:
        session = gr.State(None, time_to_live=SESSION_SECONDS, delete_callback=lambda s: s and s.forget())
        add_endpoints(handlers, session)  # first, so that the public names are theirs
        secret = browser_secret()
        intro = gr.HTML(introduction(model), elem_classes="sxl-head", padding=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Ask", id="ask"):
                talk = build_talk(handlers, session, shelf is not None)
            if shelf is not None:
                with gr.Tab("Shelf", id="shelf"):
                    build_shelf(ShelfHandlers(handlers, shelf), secret, session, talk, tabs, page)
            if handlers.can_compare:
                with gr.Tab("Compare", id="compare"):
                    _compare(handlers, session)
            with gr.Tab("Model", id="model"):
                _choose(handlers, [intro, *talk.fitted], talk.heard)
        page.unload(handlers.leave)
    return page


def _compare(handlers: Handlers, session: gr.State) -> None:
    comparison = Comparison(handlers)
    gr.Markdown(
        "The recording of the first tab is heard again at every ratio and asked the same question: what does a smaller memory "
        "cost?"
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
    others = gr.Checkbox(
        False,
        label="Also memories that need no training (stride, pool, window, attention)",
        container=False,
        interactive=True,
    )
    result = gr.HTML(comparison.empty(), elem_id="sxl-compared", padding=False)
    gr.on(
        [run.click, question.submit],
        comparison.run,
        [question, others, session],
        result,
        concurrency_id="listen",
        concurrency_limit=2,
        **PRIVATE,
    )


def _choose(handlers: Handlers, fitted: list[Any], heard: list[Any]) -> None:
    """What the model is and what fits this machine; where it is allowed, another model, which `fitted` is then fitted to."""
    session, facts = heard[0], about(handlers.model, handlers.max_hours)
    if not handlers.choice.is_open:
        gr.HTML(facts, padding=False)
        return
    with gr.Row(elem_classes="sxl-choose"):
        name = gr.Textbox(
            label="small, nano, a checkpoint folder or a Hub id",
            placeholder="empty: the usual model",
            scale=4,
            min_width=220,
        )
        backend = gr.Dropdown(["auto", *BACKENDS], value="auto", label="Backend", scale=1, min_width=110)
        load = gr.Button("Load", variant="primary", scale=1, min_width=90)
    shown = gr.HTML(facts, padding=False)

    def choose(name: str, backend: str, session: Session | None, request: gr.Request) -> tuple[Any, ...]:
        model, drawn = handlers.choose(name, backend, session, request)
        return about(model, handlers.max_hours), introduction(model), *fit(model), *drawn

    gr.on(
        [load.click, name.submit],
        choose,
        [name, backend, session],
        [shown, *fitted, *heard],
        concurrency_id="choose",
        concurrency_limit=1,
        **PRIVATE,
    )
