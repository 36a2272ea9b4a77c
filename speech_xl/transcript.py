"""What was said, as text with times: each interval's words, asked from its own slots, or words recognised while listening.

It knows how intervals are asked, how their texts join, and how a segment is written in txt, SRT and VTT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speech_xl.clock import subtitle_clock
from speech_xl.memory import AudioMemory
from speech_xl.recall import Interval, intervals_between, recalled_words
from speech_xl.recognition import Word
from speech_xl.slices import check_span

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel

LONGEST_WORD = 24  # characters; a longer run without a space is another writing system, not half a word
LONGEST_LINE = 84  # characters: two lines of a subtitle
LONGEST_PAUSE = 1.5  # seconds of silence inside a segment of recognised words
FORMATS = ("txt", "json", "srt", "vtt")


@dataclass(frozen=True)
class Segment:
    """One interval's words, or a sentence of recognised ones. All texts joined by spaces are the whole transcript."""

    start: float  # seconds
    end: float
    text: str


def transcribe(
    model: SpeechModel, memory: AudioMemory, start: float | None = None, end: float | None = None
) -> Iterator[Segment]:
    """The segments that overlap [start, end] seconds, in order, a batch of intervals at a time.

    An interval is asked whole, as in training, so the first and the last segment may reach beyond the span.
    QuestionError at once if the span is empty or not inside the recording.
    """
    if memory.text_position is not None:
        raise ValueError("a slice has lost where its intervals stood; give the whole memory and a span")
    first, last = (0.0, memory.seconds)
    if start is not None or end is not None:
        first, last = check_span(start, end, memory.seconds)
    return _segments(model, memory, intervals_between(memory, first, last))


def _segments(model: SpeechModel, memory: AudioMemory, intervals: list[Interval]) -> Iterator[Segment]:
    said = recalled_words(model, memory, intervals)
    # Where speech tokens are recognised words, intervals cut one text in pieces, and a piece tells by itself whether
    # it goes on with a word. Otherwise each answer is a text of its own.
    if model.config.recognizer is not None:
        texts = join_words(said, model.prompt.text)
    else:
        texts = map(model.prompt.decode, said)
    for interval, text in zip(intervals, texts, strict=True):
        if text:
            yield Segment(round(interval.start, 2), round(interval.end, 2), " ".join(text.split()))


def recognized_segments(words: Iterable[Word]) -> Iterator[Segment]:
    """Recognised words as segments: a sentence each, or less where somebody pauses or the line is full."""
    line: list[Word] = []
    for word in words:
        if line and (_ends(line[-1], ".?!") or word.start - line[-1].end > LONGEST_PAUSE):
            yield _segment_of(line)
            line = []
        elif line and sum(len(w.text) + 1 for w in line) + len(word.text) > LONGEST_LINE:
            # Behind a comma, if one stands in the line's second half.
            cut = next((n for n in range(len(line), len(line) // 2, -1) if _ends(line[n - 1], ",;:")), len(line))
            yield _segment_of(line[:cut])
            line = line[cut:]
        line.append(word)
    if line:
        yield _segment_of(line)


def _ends(word: Word, marks: str) -> bool:
    return word.text.rstrip("\"')")[-1:] in tuple(marks)


def _segment_of(words: list[Word]) -> Segment:
    return Segment(round(words[0].start, 2), round(words[-1].end, 2), " ".join(word.text for word in words))


def join_words(pieces: Iterable[list[int]], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """One text per piece of a token sequence. A word that a border cuts goes whole to the piece where it begins.

    Neighbours are decoded together: a tokenizer may hide a leading space, and half a character may stand on each
    side of a border.
    """
    before: list[int] = []  # the last piece that held something
    held: list[str] = []  # texts that wait for the rest of a word: one, and empty ones behind it
    for ids in pieces:
        if not ids:
            held.append("")
            continue
        alone, both = decode(before), decode(before + ids)
        shared = len(os.path.commonprefix([alone, both]))  # noqa: RUF071 (characters are meant, not folders)
        added, before = both[shared:], ids
        if held:
            held[0] = held[0][: len(held[0]) - (len(alone) - shared)]
            rest = re.match(rf"\S{{1,{LONGEST_WORD}}}(?!\S)", added)
            if rest is not None and held[0] and not held[0][-1].isspace():
                held[0] += rest[0]
                added = added[rest.end() :]
                if not added.strip():  # the word may go on still, unless a space ends it
                    held[0] += added
                    held.append("")
                    continue
        yield from map(str.strip, held)
        held = [added]
    yield from map(str.strip, held)


def text_lines(segments: Iterable[Segment], kind: str) -> Iterator[str]:
    """A transcript as txt (a segment a line), srt (SubRip) or vtt (https://www.w3.org/TR/webvtt1/), line by line."""
    if kind == "vtt":
        yield from ("WEBVTT", "")
    for number, s in enumerate(segments, 1):
        if kind == "txt":
            yield s.text
            continue
        point = "," if kind == "srt" else "."
        text = s.text if kind == "srt" else s.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        times = f"{subtitle_clock(s.start, point)} --> {subtitle_clock(s.end, point)}"
        yield from ([str(number)] if kind == "srt" else [])
        yield from (times, text, "")
