"""Times of a recording in words: how a person writes them, and how they are shown.

It knows seconds, no recording.
"""

from __future__ import annotations

import re

from speech_xl.errors import QuestionError

_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_CLOCK = re.compile(r"(?:([0-9]{1,4}):([0-5]?[0-9])|([0-9]{1,6})):([0-5][0-9](?:\.[0-9]{1,9})?)")


def parse_time(text: str) -> float:
    """Seconds of "80", "80.5", "1:20", "1:02:03" or "1:02:03.5"; QuestionError for anything else."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise QuestionError(f"{text[:40]!r} is not a time; write seconds, M:SS or H:MM:SS, such as 80 or 1:20.")
    hours, minutes, only_minutes, seconds = match.groups(default="0")
    return int(hours) * 3600 + (int(minutes) + int(only_minutes)) * 60 + float(seconds)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def subtitle_clock(seconds: float, point: str) -> str:
    """01:02:03.500, or with another `point` before the thousandths."""
    rest, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, rest = divmod(rest, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest:02}{point}{thousandths:03}"
