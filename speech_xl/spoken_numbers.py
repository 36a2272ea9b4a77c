"""Numbers and short titles spelled as they are said: "$40" -> "forty dollars", "1984" -> "nineteen eighty-four".

A recogniser writes figures where people say words. What a figure was said as is not always certain ("1984" may be a
number); the likeliest way is taken. It knows English text alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from num2words import num2words

_TITLES = {"Dr.": "Doctor", "Prof.": "Professor", "Capt.": "Captain"}
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_SCALE = r"(?: (?:hundred|thousand|million|billion|trillion))?"
_FIRST_YEAR, _LAST_YEAR = 1100, 2099
_TITLE = rf"\b(?:{'|'.join(title.rstrip('.') for title in _TITLES)})"
_UNSETTLED = re.compile(rf"[\d$]|{_TITLE}\b")


def _words(figures: str) -> str:
    value = figures.replace(",", "")
    said = num2words(float(value) if "." in value else int(value))
    return said.replace(",", "")


def _money(match: re.Match) -> str:
    amount, scale = match[1], match[2]
    unit = "dollar" if amount == "1" and not scale else "dollars"
    if (cents := re.fullmatch(r"([\d,]+)\.(\d\d)", amount)) and not scale:
        return (
            f"{_words(cents[1])} {unit} {_words(str(int(cents[2])))}" if int(cents[2]) else f"{_words(cents[1])} {unit}"
        )
    return f"{_words(amount)}{scale} {unit}"


def _clock(match: re.Match) -> str:
    hour, minute = _words(match[1]), int(match[2])
    if minute == 0:
        return f"{hour} o'clock"
    return f"{hour} {'oh ' if minute < 10 else ''}{_words(str(minute))}"


def _plain(match: re.Match) -> str:
    figures = match[0]
    if re.fullmatch(r"\d{4}", figures) and _FIRST_YEAR <= int(figures) <= _LAST_YEAR:
        return num2words(int(figures), to="year")
    if len(figures) > 1 and figures[0] == "0" and figures.isdigit():  # a code, said figure by figure
        return " ".join(map(_words, figures))
    return _words(figures)


_RULES: tuple[tuple[re.Pattern, Callable[[re.Match], str]], ...] = (
    (re.compile(rf"{_TITLE}\.(?= [A-Z])"), lambda m: _TITLES[m[0]]),
    (re.compile(rf"\$({_NUMBER})({_SCALE})(?: dollars)?"), _money),
    (re.compile(rf"({_NUMBER})%"), lambda m: f"{_words(m[1])} percent"),
    (re.compile(r"\b(\d{1,2}):(\d\d)(?: o'clock)?"), _clock),
    (re.compile(r"\b(\d+)(?:st|nd|rd|th)\b"), lambda m: num2words(int(m[1]), to="ordinal")),
    (re.compile(r"(?<=\d)(?:, |-)(?=\d)|(?<=\b\d),(?=\d\b)"), lambda m: " "),  # "4, 7": figures one by one
    (re.compile(_NUMBER), _plain),
)


def spoken(text: str) -> str:
    """The text with its figures and short titles in words."""
    for pattern, say in _RULES:
        text = pattern.sub(say, text)
    return text


def settled(text: str) -> str:
    """The beginning of an unfinished text whose spelling does not depend on what follows: whole words without figures."""
    unsettled = _UNSETTLED.search(text)
    text = text[: unsettled.start()] if unsettled else text
    return text[: text.rfind(" ") + 1].rstrip(" ")
