"""Names and words from outside: whatever they hold, a terminal shows it and does nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_xl.errors import RecordingError
from speech_xl.plain_text import harmless, one_line

HOSTILE = ["\x1b[2J", "\x07", "\r", "\x7f", "\x9b31m", "\u202e", "\u2066", "\u2028", "\udcff", "\0"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_acts_on_a_terminal_is_shown_by_its_number(text: str) -> None:
    for shown in (harmless(text), one_line(text), str(RecordingError(text))):
        assert shown.isprintable() and shown == text.encode("unicode_escape").decode()


def test_texts_of_all_scripts_stay() -> None:
    text = "caf\u00e9 \u65e5\u672c \U0001f399\ufe0f \u0639\u0631\u0628\u064a \\n"
    assert harmless(text) == one_line(text) == text


@given(st.text())
def test_one_line_is_one_and_stays_as_it_is(text: str) -> None:
    shown = one_line(text)
    shown.encode()  # does not fail
    assert len(shown.splitlines()) <= 1 and one_line(shown) == shown
    assert harmless("a\n\tb") == "a\n\tb" and one_line("a\n\tb") == "a\\n\\tb"
