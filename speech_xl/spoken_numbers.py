"""Numbers and short titles spelled as they are said: "$40" -> "forty dollars", "1984" -> "nineteen eighty-four".

A recogniser writes figures where people say words. What a figure was said as is not always certain ("1984" may be a
number); the likeliest way is taken. The other way round, a question's figures are found in a text in whatever way they
were said. It knows English text alone.
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
    said: str = num2words(float(value) if "." in value else int(value))
    return said.replace(",", "")


def _money(match: re.Match[str]) -> str:
    amount, scale = match[1], match[2]
    unit = "dollar" if amount == "1" and not scale else "dollars"
    if (cents := re.fullmatch(r"([\d,]+)\.(\d\d)", amount)) and not scale:
        return (
            f"{_words(cents[1])} {unit} {_words(str(int(cents[2])))}" if int(cents[2]) else f"{_words(cents[1])} {unit}"
        )
    return f"{_words(amount)}{scale} {unit}"


def _clock(match: re.Match[str]) -> str:
    hour, minute = _words(match[1]), int(match[2])
    if minute == 0:
        return f"{hour} o'clock"
    return f"{hour} {'oh ' if minute < 10 else ''}{_words(str(minute))}"


def _plain(match: re.Match[str]) -> str:
    figures = match[0]
    if re.fullmatch(r"\d{4}", figures) and _FIRST_YEAR <= int(figures) <= _LAST_YEAR:
        return str(num2words(int(figures), to="year"))
    if len(figures) > 1 and figures[0] == "0" and figures.isdigit():  # a code, said figure by figure
        return " ".join(map(_words, figures))
    return _words(figures)


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
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


_ASKED = re.compile(r"(?<![\w.,:$])\d{1,9}(?![\w%]|[.,:]\d)")  # a plain whole number of a question
FIGURES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")  # said one by one
_NUMBERS = {w for n in range(100) for w in re.findall("[a-z]+", num2words(n))} | {
    "hundred",
    "thousand",
    "million",
    "billion",
}
_NUMBER_WORD = rf"(?:\d+|{'|'.join(sorted(_NUMBERS))})"
_ENDS_IN_NUMBER = re.compile(rf"\b{_NUMBER_WORD}[ ,-]{{1,2}}$", re.IGNORECASE)
_BEGINS_WITH_NUMBER = re.compile(rf"[ ,-]{{1,2}}{_NUMBER_WORD}\b", re.IGNORECASE)
_DIGITS = ("zero|oh", *FIGURES[1:])


def number_matches(figures: str, text: str) -> list[re.Match[str]]:
    """Where a text has a whole number as it may have been said: "15" in "15", "fifteen", or "one, five".

    Of the ways to say it, the first that occurs counts. A single figure may have a zero before it, as in codes.
    """
    value = int(figures)
    one_by_one = r"\W{1,3}".join(rf"(?:{figure}|{_DIGITS[int(figure)]})" for figure in figures)
    if len(figures) == 1 and (coded := _found(rf"(?:0|{_DIGITS[0]})\W{{1,3}}{one_by_one}", text)):
        return coded
    ways = [figures, _said_as(num2words(value))]
    if _FIRST_YEAR <= value <= _LAST_YEAR:
        ways.append(_said_as(num2words(value, to="year")))
    for way in ways:
        if whole := [match for match in _found(way, text) if not _is_part(match)]:
            return whole
    return _found(one_by_one, text) if len(figures) > 1 else []


def _found(way: str, text: str) -> list[re.Match[str]]:
    return list(re.finditer(rf"(?<![\w.,-])(?:{way})(?!\w|[.,]\d)", text, re.IGNORECASE))


def _is_part(match: re.Match[str]) -> bool:
    """Whether a number that was found is a part of a longer one: "nine" of "nine six" or of "nine hundred"."""
    before, behind = match.string[: match.start()], match.string[match.end() :]
    return bool(_ENDS_IN_NUMBER.search(before) or _BEGINS_WITH_NUMBER.match(behind))


def _said_as(words: str) -> str:
    return r"\W+".join(re.findall(r"[a-z]+", words))


def asked_numbers(question: str) -> list[str]:
    """The whole numbers that a question holds as figures, in order."""
    return _ASKED.findall(question)


def as_heard(question: str, text: str) -> str:
    """A question with its figures as a text spells them: "order 15" -> "order one five" where the text has "One, five".

    Figures that the text does not hold in any spelling stay as they are.
    """

    def spell(match: re.Match[str]) -> str:
        found = number_matches(match[0], text)
        return " ".join(re.findall(r"\w+", found[0][0])) if found else match[0]

    return _ASKED.sub(spell, question)
