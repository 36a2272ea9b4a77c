"""The same question at every ratio and with every other summarizer: hear the recording, ask, show what it cost.

It knows the core through handlers; the table and the plot are drawn here, as HTML and SVG.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle

import gradio as gr

from space.handlers import Handlers
from space.pictures import times
from space.session import Session
from speech_xl.clock import clock
from speech_xl.conversation import Listening, ask
from speech_xl.errors import RecordingError, SpeechXLError
from speech_xl.model import SpeechModel
from speech_xl.schedule import Ratio, format_bytes
from speech_xl.summarizers import SUMMARIZERS, choose_summarizer

REDRAW_SECONDS = 0.5
COLOURS = (
    "#64748b",
    "#4f46e5",
    "#0891b2",
    "#16a34a",
    "#d97706",
    "#db2777",
    "#7c3aed",
    "#0d9488",
    "#65a30d",
    "#b91c1c",
)
COLUMNS = ("answer", "rests on", "memory", "slots", "heard in", "answered in")
WIDTH, HEIGHT, LEFT, BOTTOM = 800, 260, 84, 26  # of the plot, in SVG units


@dataclass
class Attempt:
    """One way to listen: what it answered and what it took."""

    summarizer: str
    ratio: Ratio
    curve: list[tuple[float, int]] = field(default_factory=list)  # (seconds heard, bytes of memory)
    answer: str | None = None
    rests_on: str = ""  # when what it rests on was said
    slots: int = 0
    memory_bytes: int = 0
    listen_seconds: float = 0.0
    answer_seconds: float = 0.0

    @property
    def name(self) -> str:
        """What its row is called."""
        if self.ratio is None:
            return "raw"
        return f"{'SSTs' if self.summarizer == 'sst' else self.summarizer}, {self.ratio} to 1"


class Comparison:
    """The tab that asks one question of several memories of the same recording."""

    def __init__(self, handlers: Handlers):
        self.handlers = handlers

    def empty(self) -> str:
        """The table before anything was asked."""
        return draw(self._attempts(self.handlers.model, False), 0.0)

    def _attempts(self, model: SpeechModel, with_untrained: bool) -> list[Attempt]:
        """The model's own summarizer at every ratio; then, if wanted, those that need no training at the usual ratio."""
        own, _ = choose_summarizer("auto", model.config)
        usual = model.config.sst.default_ratio if model.config.sst else max(model.ratios)
        others = [n for n, s in SUMMARIZERS.items() if not s.needs_training and n not in ("raw", own.name)]
        ratios = [Attempt(own.name, r) for r in (None, *model.ratios)]
        return ratios + [Attempt(n, usual) for n in others] if with_untrained else ratios

    def run(self, question: str, with_untrained: bool, session: Session | None) -> Iterator[str]:
        """Pages of the growing result; stops when the visitor's recording is dropped."""
        try:
            yield from self._run(question, with_untrained, session)
        except SpeechXLError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _run(self, question: str, with_untrained: bool, session: Session | None) -> Iterator[str]:
        if session is None or session.run.memory is None:
            raise RecordingError("There is nothing to compare yet; listen to a recording on the first tab.")
        run = session.run
        model, source, memory = session.model, run.source, run.memory
        if source is None:
            raise RecordingError("A kept memory has no sound to hear again; listen to its recording first.")
        model.prompt.question_ids(question)  # says at once what is wrong with a question
        attempts = self._attempts(model, with_untrained)
        for attempt in attempts:
            started = drawn = time.monotonic()
            listening = Listening(model, source, attempt.ratio, summarizer=attempt.summarizer)
            for heard in listening:
                attempt.curve.append((heard.seconds, heard.memory_bytes))
                if run.is_over:
                    return
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield draw(attempts, memory.seconds)
            attempt.listen_seconds = time.monotonic() - started
            attempt.slots, attempt.memory_bytes = listening.memory.slots, listening.memory.bytes
            asking = ask(model, listening.memory, question)
            text = "".join(asking)
            attempt.answer, attempt.answer_seconds = text, asking.answer.seconds
            attempt.rests_on = times(asking.answer.evidence[0]) if asking.answer.evidence else ""
            yield draw(attempts, memory.seconds)


def draw(attempts: Sequence[Attempt], seconds: float) -> str:
    """HTML of the table and of its timeline over a recording of `seconds`."""
    rows = []
    largest = max((a.memory_bytes for a in attempts), default=0)
    for attempt, colour in zip(attempts, cycle(COLOURS), strict=False):
        cells = [""] * len(COLUMNS)
        if attempt.answer is not None:
            cells = [
                escape(attempt.answer) or "(nothing)",
                attempt.rests_on,
                format_bytes(attempt.memory_bytes) + _size(attempt.memory_bytes / largest),
                f"{attempt.slots:,}",
                f"{attempt.listen_seconds:.1f} s",
                f"{attempt.answer_seconds:.2f} s",
            ]
        elif attempt.curve:
            cells[0] = f"listening, {clock(attempt.curve[-1][0])} ..."
        name = f'<th scope="row"><span class="sxl-dot" style="background:{colour}"></span>{attempt.name}</th>'
        rows.append(f"<tr>{name}" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    head = "".join(f'<th scope="col">{n}</th>' for n in ("memory made by", *COLUMNS))
    return (
        '<div class="sxl-scroll" tabindex="0" role="region" aria-label="Memories compared">'
        f'<table class="sxl-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'</div><h3 class="sxl-title">Memory against time heard</h3>{plot(attempts, seconds)}'
    )


def _size(part: float) -> str:
    """A bar beside a number: a memory's size, of the largest one's."""
    return f'<span class="sxl-size" style="width:{max(2, round(100 * part))}%"></span>'


def plot(attempts: Sequence[Attempt], seconds: float) -> str:
    """Bytes of memory over seconds heard, one line a row of the table."""
    largest = max((size for a in attempts for _, size in a.curve), default=0)
    if not largest or not seconds:
        return '<div class="sxl-plot sxl-empty">A plot with one line per row appears here.</div>'
    across, up = WIDTH - LEFT - 12, HEIGHT - BOTTOM - 14

    def place(x: float, y: float) -> str:
        return f"{LEFT + x / seconds * across:.1f},{HEIGHT - BOTTOM - y / largest * up:.1f}"

    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/><text x="{LEFT - 8}" y="{y + 4:.1f}" '
        f'text-anchor="end">{format_bytes(round(largest * part))}</text>'
        for part in (0.0, 0.5, 1.0)
        for y in [HEIGHT - BOTTOM - part * up]
    )
    times = "".join(
        f'<text x="{LEFT + part * across:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{clock(part * seconds)}</text>'
        for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    lines = "".join(
        f'<polyline points="{" ".join(place(*p) for p in a.curve)}" stroke="{colour}"><title>{a.name}</title></polyline>'
        for a, colour in zip(attempts, cycle(COLOURS), strict=False)
        if a.curve
    )
    return (
        f'<div class="sxl-plot" role="img" aria-label="Bytes of memory against time heard, one line per row">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{grid}{times}{lines}</svg></div>'
    )
