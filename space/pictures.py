"""HTML and SVG that the page shows: progress, timeline, figures, evidence, transcript. Text in, markup out; no state.

Everything that comes from a visitor is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from speech_xl.clock import clock
from speech_xl.conversation import Heard
from speech_xl.evidence import Evidence
from speech_xl.memory import AudioMemory
from speech_xl.schedule import format_bytes
from speech_xl.transcript import Segment

SILENCE = -50.0  # dB: an interval below this is drawn as silence
LOUDNESS_RANGE = 15.0  # dB from the tallest bar to the lowest
LONGEST_NAME = 60  # characters of a file's name that are shown
MOST_BARS = 240  # in the timeline: neighbours are joined beyond that
CAPTION_LENGTH = 160  # characters: two lines
AS_RECOGNISED = "As recognised while listening, before anything was compressed."
FROM_MEMORY = "From the memory: what the model reads back out of its slots. It may differ from what was said."


def file_url(path: str) -> str:
    """Relative, so that it also works behind a proxy's folder."""
    return "gradio_api/file=" + quote(path)


def shown_name(path: str) -> str:
    """A file's name for HTML, shortened where it is long."""
    name = Path(path).name
    return escape(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "...")


def times(evidence: Evidence, between: str = "-") -> str:
    """From when to when, in whole seconds that hold all of it."""
    return f"{clock(evidence.start)}{between}{clock(math.ceil(evidence.end))}"


def figures(heard: Heard | None, memory: AudioMemory | None = None) -> str:
    """Live numbers while listening, in cells of fixed width so that nothing jumps."""
    left = "0:00" if memory else "-"
    if heard is None and memory is None:
        values = ["-"] * 6
    elif heard is None:  # a memory that came from a file
        values = [clock(memory.seconds), "-", left, f"{memory.tokens:,}", format_bytes(memory.bytes), "-"]
    else:
        if heard.total_seconds and memory is None:
            left = clock(max(0.0, heard.total_seconds - heard.seconds) / max(heard.speed, 1e-9))
        values = [
            clock(heard.seconds), f"{heard.speed:.0f}x real time", left, f"{heard.tokens:,}",
            format_bytes(heard.memory_bytes), format_bytes(heard.raw_bytes),
        ]  # fmt: skip
    slots = "" if heard is None and memory is None else f", {(memory or heard).slots:,} slots"
    names = ["heard", "speed", "time left", "speech tokens", f"memory{slots}", "uncompressed"]
    cells = "".join(f"<div><dt>{n}</dt><dd>{v}</dd></div>" for n, v in zip(names, values, strict=True))
    return f'<dl class="sxl-figures">{cells}</dl>'


def timeline(events: Sequence[Heard], evidence: Sequence[Evidence] = (), done: bool = False) -> str:
    """One bar an interval: height is loudness, colour tells speech from silence; evidence glows above."""
    state = "sxl-timeline sxl-done" if done else "sxl-timeline"
    if not events:
        words = "A memory keeps no sound, so there is no timeline." if done else (
            "The timeline grows here while the recording is heard."
        )  # fmt: skip
        return f'<div class="{state} sxl-empty">{words}</div>'
    total = max(events[-1].total_seconds or 0.0, events[-1].seconds)
    step = -(-len(events) // MOST_BARS)
    loudest = max(e.level for e in events)
    bars = []
    for at in range(0, len(events), step):
        group = events[at : at + step]
        level = max(e.level for e in group)
        height = min(1.0, max(0.06, 1 + (level - loudest) / LOUDNESS_RANGE)) * 40
        x, width = (
            group[0].interval_start / total * 1000,
            (group[-1].interval_end - group[0].interval_start) / total * 1000,
        )
        kind = "speech" if level > SILENCE else "silence"
        ratio = "raw" if group[0].ratio is None else f"ratio {group[0].ratio}"
        slots = sum(e.interval_slots for e in group)
        title = f"{clock(group[0].interval_start)}-{clock(group[-1].interval_end)}, {ratio}, {slots} slots"
        bars.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{60 - height:.1f}" width="{max(0.5, width - 0.6):.1f}" '
            f'height="{height:.1f}"><title>{title}</title></rect>'
        )
    strongest = max((e.weight for e in evidence), default=1.0)
    glow = "".join(
        f'<rect class="evidence" x="{e.start / total * 1000:.1f}" y="2" width="{max(3.0, (e.end - e.start) / total * 1000):.1f}" '
        f'height="12" opacity="{0.25 + 0.75 * e.weight / strongest:.2f}"><title>{times(e)}</title></rect>'
        for e in evidence
    )
    heard = events[-1].seconds
    label = f"Timeline: {clock(heard)} of {clock(total)} heard"
    return (
        f'<div class="{state}" role="img" aria-label="{label}"><svg viewBox="0 0 1000 62" preserveAspectRatio="none">'
        f'{"".join(bars)}{glow}</svg><div class="sxl-scale"><span>0:00</span><span>{clock(total / 2)}</span>'
        f"<span>{clock(total)}</span></div></div>"
    )


def player(source: str | None, name: str = "") -> str:
    """The recording itself; evidence buttons move it (see page.js)."""
    if source is None:
        return '<div class="sxl-player sxl-empty">No recording to play yet.</div>'
    return (
        f'<div class="sxl-player"><audio id="sxl-player" controls preload="metadata" src="{escape(source, quote=True)}" '
        f'aria-label="Recording {escape(name, quote=True)}" ontimeupdate="sxlStop(this)"></audio></div>'
    )


def evidence_buttons(evidence: Sequence[Evidence]) -> str:
    """The strongest spans, each a button that plays exactly that part."""
    if not evidence:
        return '<div class="sxl-evidence sxl-empty">Where an answer comes from is shown here; press a time to hear it.</div>'
    buttons = "".join(
        f'<button type="button" onclick="sxlPlay({e.start},{e.end})" aria-label="Play {times(e, " to ")}">'
        f"&#9654; {times(e, '&#8211;')} <small>{e.weight:.0%}</small></button>"
        for e in evidence
    )
    return f'<div class="sxl-evidence">{buttons}</div>'


def caption(events: Sequence[Heard], has_recognizer: bool) -> str:
    """The newest recognised words and when they were said; nothing for a model that recognises none."""
    if not has_recognizer:
        return ""
    newest = next((e for e in reversed(events) if e.words), None)
    if newest is None:
        return '<p class="sxl-caption sxl-empty">Words appear here as they are recognised.</p>'
    words = newest.text if len(newest.text) <= CAPTION_LENGTH else "... " + newest.text[-CAPTION_LENGTH:].partition(" ")[2]
    return f'<p class="sxl-caption"><time>{clock(newest.words[0].start)}</time> {escape(words)}</p>'


def no_words_yet(will_come: bool) -> str:
    """What stands in place of a transcript."""
    if will_come:
        return "Words appear here, with their times, while a recording is heard."
    return "Nothing was recognised while listening. Transcribe lets the model read the words back from its memory."


def transcript(segments: Sequence[Segment], note: str, is_playable: bool) -> str:
    """One line a segment; a click plays it (see page.js) where there is sound to play."""
    if not segments:
        return f'<p class="sxl-note">{note}</p>'
    lines = []
    for s in segments:
        play = f' onclick="sxlPlay({s.start},{s.end})"' if is_playable else ""
        time = f'<button type="button" aria-label="Play from {clock(s.start)}">{clock(s.start)}</button>'
        time = time if is_playable else f"<time>{clock(s.start)}</time>"
        lines.append(f"<li{play}>{time}<span>{escape(s.text)}</span></li>")
    return f'<p class="sxl-note">{note}</p><ol class="sxl-lines">{"".join(lines)}</ol>'
