"""Times as people write them, and spans of a recording that can and cannot be."""

from __future__ import annotations

import math

import pytest

from speech_xl.clock import clock, parse_time, subtitle_clock
from speech_xl.errors import QuestionError
from speech_xl.slices import check_span


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("80", 80), ("80.25", 80.25), ("1:20", 80), ("01:20.5", 80.5), ("90:00", 5400), ("1:02:03", 3723)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "1:60", "1:2", "1:60:00", "1:02:03:04", "1e3", "nan", "9" * 400])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(QuestionError, match="M:SS") as refusal:
        parse_time(text)
    assert len(str(refusal.value)) < 150


def test_times_are_shown() -> None:
    assert [clock(s) for s in (0, 61.9, 3723)] == ["0:00", "1:01", "1:02:03"]
    assert subtitle_clock(3723.4567, ",") == "01:02:03,457" and subtitle_clock(0.9996, ".") == "00:00:01.000"


def test_a_span_is_inside_its_recording() -> None:
    assert check_span(None, None, 7.3) == (0, 7.3) and check_span(2, None, None) == (2, math.inf)
    assert check_span(1, 8, 7.3) == (1, 7.3)  # a clock shows 0:08 in the last second


@pytest.mark.parametrize(
    ("start", "end", "seconds", "sentence"),
    [
        (7.3, None, 7.3, "outside"),
        (1, 9, 7.3, "outside"),
        (3, 2, None, "after the start"),
        (2, 2, 7.3, "after"),
        (-1, None, 7.3, "negative"),
        (math.nan, 3, 7.3, "negative"),
    ],
)
def test_other_spans_are_refused(start: float, end: float | None, seconds: float | None, sentence: str) -> None:
    with pytest.raises(QuestionError, match=sentence):
        check_span(start, end, seconds)
