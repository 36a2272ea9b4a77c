"""Figures as people say them."""

from __future__ import annotations

import pytest

from speech_xl.spoken_numbers import as_heard, settled, spoken

SAID = {
    "$40": "forty dollars",
    "$1": "one dollar",
    "$2 million": "two million dollars",
    "$3.5 million": "three point five million dollars",
    "$2.50": "two dollars fifty",
    "40 dollars": "forty dollars",
    "900,000": "nine hundred thousand",
    "15%": "fifteen percent",
    "7:30": "seven thirty",
    "at 10:00": "at ten o'clock",
    "8 o'clock": "eight o'clock",
    "7 in the evening": "seven in the evening",
    "1984": "nineteen eighty-four",
    "1,984": "one thousand nine hundred and eighty-four",
    "2006": "two thousand and six",
    "March 3rd": "March third",
    "the 21st floor": "the twenty-first floor",
    "4, 7": "four seven",
    "4-7": "four seven",
    "007": "zero zero seven",
    "2.5 miles": "two point five miles",
    "16-ounce": "sixteen-ounce",
    "room 7": "room seven",
    "Dr. Reed": "Doctor Reed",
    "Mrs. Harris": "Mrs. Harris",
    "by train": "by train",
    "": "",
}


@pytest.mark.parametrize(("written", "said"), SAID.items())
def test_figures_are_said(written: str, said: str) -> None:
    assert spoken(written) == said


@pytest.mark.parametrize("written", SAID)
def test_what_is_shown_early_stays(written: str) -> None:
    """Whatever is shown of an unfinished answer is how the finished one begins."""
    text = f"so {written} and more"
    for end in range(len(text) + 1):
        assert spoken(text).startswith(settled(text[:end]))


HEARD = [
    ("order 15", "Two. One, five. Go on.", "order One five"),
    ("order 15", "at 1, 5 Make me", "order 1 5"),
    ("order 15", "9.8 then 1.5 Brew", "order 1 5"),
    ("order 15", "fifteen of them, one five", "order fifteen"),
    ("order 15", "one fifty, 115 and 15th", "order 15"),
    ("order 15", "15 of them", "order 15"),
    ("order 7", "one seven, zero seven", "order zero seven"),
    ("order 7", "oh, seven", "order oh seven"),
    ("order 7", "it is seven", "order seven"),
    ("order 9", "nine six, nine hundred", "order 9"),
    ("order 9", "nine six. Nine.", "order Nine"),
    ("order 9", "forty 9, 9", "order 9"),
    ("order 47", "forty seven thousand, 4 7", "order 4 7"),
    ("in 1892?", "in eighteen ninety-two", "in eighteen ninety two?"),
    ("in 1892?", "in 1892.", "in 1892?"),
    ("$15, 15%, 7:15, 1.5 and 1,500", "one five", "$15, 15%, 7:15, 1.5 and 1,500"),
    ("the 250 cars", "two hundred and fifty cars", "the two hundred and fifty cars"),
    ("no figures", "one five", "no figures"),
]


@pytest.mark.parametrize(("question", "text", "spelled"), HEARD)
def test_a_question_spells_figures_as_the_text_does(question: str, text: str, spelled: str) -> None:
    assert as_heard(question, text) == spelled
