"""HTML that the page shows: names, times, figures, evidence, the newest words. Text in, markup out; no state.

Everything that comes from a visitor is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from speech_xl.clock import clock
from speech_xl.conversation import Heard
from speech_xl.evidence import Evidence
from speech_xl.memory import AudioMemory
from speech_xl.schedule import format_bytes
from speech_xl.transcript import Segment

LONGEST_NAME = 60  # characters of a file's name that are shown
CAPTION_LENGTH = 160  # characters: two lines
QUOTE_LENGTH = 110  # characters of what was said in a piece of evidence
MOST_EVIDENCE = 3
LEAST_EVIDENCE = 0.2  # of the strongest span's weight: a weaker one is not shown as a reason


def shown_name(path: str) -> str:
    """A file's name for HTML, shortened where it is long."""
    name = Path(path).name
    return escape(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "...")


def times(evidence: Evidence, between: str = "-") -> str:
    """From when to when, in whole seconds that hold all of it."""
    return f"{clock(evidence.start)}{between}{clock(math.ceil(evidence.end))}"


def figures(heard: Heard | None, memory: AudioMemory | None = None) -> str:
    """Live numbers while listening, in cells of fixed width so that nothing jumps."""
    if heard is None and memory is None:
        return ""
    left = "0:00" if memory else "-"
    if heard is None:  # a memory that came from a file
        values = [clock(memory.seconds), "-", left, f"{memory.tokens:,}", format_bytes(memory.bytes), "-"]
    else:
        if heard.total_seconds and memory is None:
            left = clock(max(0.0, heard.total_seconds - heard.seconds) / max(heard.speed, 1e-9))
        size = memory.bytes if memory else heard.memory_bytes
        values = [
            clock(heard.seconds),
            f"{_speed(heard.speed)}x real time",
            left,
            f"{heard.tokens:,}",
            format_bytes(size),
            format_bytes(heard.raw_bytes),
        ]
    slots = f"memory, {(memory or heard).slots:,} slots"
    names = ["heard", "speed", "time left", "speech tokens", slots, "uncompressed"]
    cells = "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in zip(names, values, strict=True))
    return f'<dl class="sxl-figures">{cells}</dl>'


def _speed(times: float) -> str:
    return f"{times:.1f}" if times < 10 else f"{times:.0f}"


def evidence_buttons(
    evidence: Sequence[Evidence],
    segments: Sequence[Segment] = (),
    is_playable: bool = True,
    memory: AudioMemory | None = None,
) -> str:
    """The strongest spans with the words said in them, each a button that plays exactly that part, or shows it.

    Of a `memory` of several recordings, each span says which it lies in.
    """
    if not evidence:
        return '<div class="sxl-evidence sxl-empty">Where an answer comes from appears here; press it to hear that part.</div>'
    buttons = []
    for e in evidence[:MOST_EVIDENCE]:
        if e.weight < LEAST_EVIDENCE * evidence[0].weight:
            break
        said = " ".join(s.text for s in segments if s.start < e.end and s.end > e.start)
        words = f" <q>{escape(_shortened(said))}</q>" if said else ""
        place = f"{escape(memory.part_at(e.start)[0].path)}, " if memory is not None and memory.parts else ""
        press, what = (f"sxlPlay({e.start},{e.end})", "Play") if is_playable else (f"sxlShow({e.start})", "Show")
        buttons.append(
            f'<button type="button" onclick="{press}" title="{what} {times(e, " to ")}">'
            f"<b>{'&#9654; ' if is_playable else ''}{place}{times(e, '&#8211;')}</b>{words}</button>"
        )
    return f'<div class="sxl-evidence" role="group" aria-label="Where the answer comes from">{"".join(buttons)}</div>'


def _shortened(text: str) -> str:
    return text if len(text) <= QUOTE_LENGTH else text[:QUOTE_LENGTH].rpartition(" ")[0] + " ..."


def caption(events: Sequence[Heard], is_done: bool) -> str:
    """The newest recognised words and when they were said, while a recording is heard."""
    newest = None if is_done else next((e for e in reversed(events) if e.words), None)
    if newest is None:
        return ""
    words = newest.text
    if len(words) > CAPTION_LENGTH:
        words = "... " + words[-CAPTION_LENGTH:].partition(" ")[2]
    return f'<p class="sxl-caption"><time>{clock(newest.words[0].start)}</time> {escape(words)}</p>'
