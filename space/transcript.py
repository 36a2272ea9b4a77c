"""The transcript as cards, a segment each, under the headings of its chapters. Text in, markup out; no state.

Everything that was said is escaped here. Which card is being played, and how much an answer rests on it, page.js marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from speech_xl.chapters import Chapter
from speech_xl.clock import clock
from speech_xl.transcript import Segment

AS_RECOGNISED = "As recognised while listening, before anything was compressed."
FROM_MEMORY = "From the memory: what the model reads back out of its slots. It may differ from what was said."


def no_words_yet(will_come: bool) -> str:
    """What stands in place of a transcript."""
    if will_come:
        return "Words appear here, with their times, while a recording is heard."
    return "Nothing was recognised while listening. Transcribe lets the model read the words back from its memory."


def transcript(segments: Sequence[Segment], chapters: Sequence[Chapter], note: str, is_playable: bool) -> str:
    """One card a segment; a press of it plays it where there is sound to play."""
    if not segments:
        return f'<p class="sxl-note">{note}</p>'
    headings = {c.first: c for c in chapters} if len(chapters) > 1 else {}
    cards = []
    for number, s in enumerate(segments):
        if number in headings:
            cards.append(_heading(headings[number]))
        cards.append(_card(s, is_playable))
    return f'<p class="sxl-note">{note}</p><ol class="sxl-cards">{"".join(cards)}</ol>'


def _heading(chapter: Chapter) -> str:
    return f'<li class="sxl-heading"><h3>{escape(chapter.title) or "Chapter"}</h3></li>'


def _card(s: Segment, is_playable: bool) -> str:
    seconds = f'data-start="{s.start}" data-end="{s.end}"'
    if not is_playable:
        return f'<li class="sxl-card" {seconds}><time>{clock(s.start)}</time><span>{escape(s.text)}</span></li>'
    play = f'onclick="sxlPlay({s.start},{s.end})"'
    button = f'<button type="button" aria-label="Play from {clock(s.start)}">{clock(s.start)}</button>'
    return f'<li class="sxl-card" {seconds} {play}>{button}<span>{escape(s.text)}</span></li>'
