"""The recording's time line: loudness, chapters, and how much an answer rests on each part. Text in, markup out; no state.

A click on it moves the player (see page.js); the chapters below it are buttons, for those who do not use a mouse.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from space.pictures import times
from speech_xl.asking import Answer
from speech_xl.chapters import Chapter
from speech_xl.clock import clock
from speech_xl.conversation import Heard

SILENCE = -50.0  # dB: an interval below this is drawn as silence
LOUDNESS_RANGE = 15.0  # dB from the tallest bar to the lowest
MOST_BARS = 240  # neighbours are joined beyond that
WIDTH, HEIGHT, LANE = 1000, 72, 14  # in SVG units; the lane below the bars is the evidence's
STEPS = (
    "<ol><li><b>Choose</b> a recording, or take the example</li><li><b>Listen</b> and read along</li>"
    "<li><b>Ask</b>, and press what an answer rests on to hear it</li></ol>"
)
LEAST_HEAT = 0.02  # below this nothing is drawn


def timeline(
    events: Sequence[Heard], answer: Answer | None, chapters: Sequence[Chapter], is_done: bool, is_playable: bool
) -> str:
    """One bar an interval, height for loudness; under it the heat of the last answer; chapters as a list of buttons."""
    state = "sxl-timeline sxl-done" if is_done else "sxl-timeline"
    if not events:
        words = "<span>A memory file keeps no sound, so there is no time line.</span>" if is_done else STEPS
        return f'<div class="{state} sxl-empty">{words}</div>'
    heard = events[-1].seconds
    total = max(events[-1].total_seconds or 0.0, heard)
    heat = "" if answer is None else _heat(answer, total)
    data = f' data-seconds="{total:.2f}"'
    if answer is not None and answer.heat:
        data += f' data-heat="{" ".join(f"{part:g}" for part in answer.heat)}" data-heard="{answer.heard_seconds:.2f}"'
    click = ' onclick="sxlSeekAt(event, this)"' if is_playable else ""
    label = f"{clock(heard)} of {clock(total)} heard"
    if answer is not None and answer.evidence:
        label += "; the last answer rests on " + ", ".join(times(e, " to ") for e in answer.evidence)
    return (
        f'<div class="{state}"><div class="sxl-track"{data}{click}>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="Time line: {label}">'
        f"{_bars(events, total)}{heat}{_borders(chapters, total)}</svg>"
        '<div class="sxl-cursor" hidden></div></div>'
        f'<div class="sxl-scale"><span>0:00</span><span>{clock(total / 2)}</span><span>{clock(total)}</span></div>'
        f"{_legend(bool(heat))}{_chapters(chapters, is_playable)}</div>"
    )


def _bars(events: Sequence[Heard], total: float) -> str:
    step = -(-len(events) // MOST_BARS)
    loudest = max(e.level for e in events)
    bars = []
    for at in range(0, len(events), step):
        group = events[at : at + step]
        level = max(e.level for e in group)
        room = HEIGHT - LANE - 4
        height = min(1.0, max(0.06, 1 + (level - loudest) / LOUDNESS_RANGE)) * (room - 4)
        x, right = group[0].interval_start / total * WIDTH, group[-1].interval_end / total * WIDTH
        kind = "speech" if level > SILENCE else "silence"
        ratio = "raw" if group[0].ratio is None else f"ratio {group[0].ratio}"
        slots = sum(e.interval_slots for e in group)
        title = f"{clock(group[0].interval_start)}-{clock(group[-1].interval_end)}, {ratio}, {slots} slots"
        bars.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{room - height:.1f}" width="{max(0.5, right - x - 0.6):.1f}" '
            f'height="{height:.1f}"><title>{title}</title></rect>'
        )
    return "".join(bars)


def _heat(answer: Answer, total: float) -> str:
    """A lane of its own: the stronger, the more the answer rests on these seconds."""
    if not answer.heat:
        return ""
    width = answer.heard_seconds / len(answer.heat) / total * WIDTH
    parts = "".join(
        f'<rect class="evidence" x="{i * width:.2f}" y="{HEIGHT - LANE}" width="{width:.2f}" height="{LANE}" '
        f'opacity="{0.25 + 0.75 * part:.2f}" shape-rendering="crispEdges"/>'
        for i, part in enumerate(answer.heat)
        if part >= LEAST_HEAT
    )
    return f'<rect class="lane" x="0" y="{HEIGHT - LANE}" width="{WIDTH}" height="{LANE}"/>{parts}'


def _borders(chapters: Sequence[Chapter], total: float) -> str:
    return "".join(
        f'<line class="border" x1="{c.start / total * WIDTH:.1f}" x2="{c.start / total * WIDTH:.1f}" y1="0" y2="{HEIGHT}"/>'
        for c in chapters[1:]
    )


def _legend(has_heat: bool) -> str:
    heat = '<span><i class="evidence"></i>what the last answer rests on</span>' if has_heat else ""
    return f'<p class="sxl-legend"><span><i class="speech"></i>sound</span><span><i class="silence"></i>silence</span>{heat}</p>'


def _chapters(chapters: Sequence[Chapter], is_playable: bool) -> str:
    if len(chapters) < 2:
        return ""
    items = []
    for c in chapters:
        text = f"<time>{clock(c.start)}</time> {escape(c.title) or 'chapter'}"
        what = f'onclick="sxlOpen({c.start:.2f}, {str(is_playable).lower()})"'
        items.append(f'<li><button type="button" data-start="{c.start:.2f}" {what}>{text}</button></li>')
    return f'<nav class="sxl-chapters" aria-label="Chapters"><ol>{"".join(items)}</ol></nav>'
