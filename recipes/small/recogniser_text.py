"""How a recogniser writes what was said: numbers in digits, short titles, and now and then the wrong word.

`Style` draws one recording's habits, `written` turns a sentence (numbers in words) into what such a recogniser
writes, `misheard` adds its mistakes. The habits are what Whisper base was seen to do: "fifteen" -> "15", "three"
stays, "two million dollars" -> "$2 million", "nineteen eighty-four" -> "1984", "Doctor Reed" -> "Dr. Reed".
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_WORDS = json.loads(Path(__file__).with_name("words.json").read_text())
_UNITS = " ".join(_WORDS["numbers"]).split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {w: n for n, w in enumerate(_UNITS)} | {w: 10 * n for n, w in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ORDINALS = {w: n for n, w in enumerate(" ".join(_WORDS["ordinals"]).split(), 1)} | {"thirtieth": 30}
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_WORD = "|".join(sorted([*_VALUES, *_SCALES], key=len, reverse=True))
_JOINT = r"(?:-| |(?<=hundred) and |(?<=thousand) and |(?<=million) and )"
_NUMBER = re.compile(
    rf"\b(?:a (?=hundred\b|thousand\b|million\b))?(?:{_WORD})(?:{_JOINT}(?:{_WORD})(?!\w))*\b", re.IGNORECASE
)
_ORDINAL = "|".join(sorted(_ORDINALS, key=len, reverse=True))
_DAY = rf"((?:twenty|thirty)-)?({_ORDINAL})"

_SOUND_ALIKE = [set(group.split()) for group in _WORDS["sound_alike"]]
_ALIKE = {w: sorted(g - {w}) for g in _SOUND_ALIKE for w in g}
_SPELLINGS = [
    ("ck", "k"),
    ("ph", "f"),
    ("ie", "y"),
    ("y", "i"),
    ("ei", "ai"),
    ("ll", "l"),
    ("tt", "t"),
    ("nn", "n"),
    ("k", "c"),
    ("c", "k"),
    ("son", "sen"),
    ("sen", "son"),
    ("er", "ar"),
    ("w", "v"),
    ("sch", "sh"),
    ("es", "ez"),
    ("ee", "ea"),
]
_SHORT = {"a", "an", "the", "of", "to", "is", "and", "that", "in", "so", "we", "it"}


@dataclass(frozen=True)
class Style:
    """One recording's habits."""

    digits_from: int  # numbers below it stay words
    signs: bool  # "$" and "%"
    short_titles: bool
    lower: bool
    punctuated: bool
    mistakes: float  # share of words that are misheard

    @staticmethod
    def draw(rng: random.Random) -> Style:
        """The habits of one recording, by chance."""
        noisy = rng.random() < 0.35
        return Style(
            digits_from=rng.choice((10, 10, 10, 2, 10**12)),
            signs=rng.random() < 0.8,
            short_titles=rng.random() < 0.8,
            lower=noisy and rng.random() < 0.3,
            punctuated=not noisy or rng.random() < 0.7,
            mistakes=rng.uniform(0.02, 0.1) if noisy else 0.0,
        )


def _value(words: Sequence[str]) -> int | None:
    """["two", "hundred", "and", "five"] -> 205; None where the words are no single number."""
    total, group, last = 0, 0, 10**12
    for word in words:
        if word in _VALUES:
            value = _VALUES[word]
            if group and (last <= 19 or (last <= 90 and value >= 10)):
                return None
            group, last = group + value, value
        elif word == "hundred":
            group, last = max(1, group) * 100, 100
        elif word in _SCALES:
            total, group, last = total + max(1, group) * _SCALES[word], 0, _SCALES[word]
    return total + group


def _figures(value: int) -> str:
    for name, scale in (("billion", 10**9), ("million", 10**6)):
        if value >= scale and value % (scale // 10) == 0:
            return f"{value / scale:g} {name}"
    return str(value) if 2000 <= value < 2030 else f"{value:,}"  # 2,030 people, but the year 2006


def _number(match: re.Match, style: Style) -> str:
    words = re.split(r"[- ]", match[0].lower())
    words = [w for w in words if w not in ("a", "and")]
    after = match.string[match.end() :]
    clock = re.match(r" (o'clock|in the (morning|evening|afternoon))", after)
    if len(words) >= 3 and all(w in _UNITS[:10] for w in words):
        return " ".join(str(_VALUES[w]) for w in words)
    if words[0] in _VALUES and len(words) > 1:
        first, rest = _VALUES[words[0]], _value(words[1:])
        if first <= 12 and len(words) == 2 and rest in (15, 30):
            return f"{first}:{rest}"
        if 13 <= first <= 20 and rest is not None and 10 <= rest < 100 and words[1] in _VALUES:
            return f"{first}{rest}"  # nineteen eighty-four
        if 13 <= first <= 19 and words[1:] == ["hundred"]:
            return f"{first}00"
    value = _value(words)
    if value is None:
        return match[0]
    money = style.signs and re.match(r" dollars\b", after)
    percent = style.signs and re.match(r" percent\b", after)
    if not (clock or money or percent) and value < style.digits_from:
        return match[0]
    if money:
        return f"${_figures(value)}\0"
    return f"{value}%\0" if percent else _figures(value)


def written(text: str, style: Style) -> str:
    """A sentence or an answer as a recogniser of this style writes it, without mistakes."""
    if style.short_titles:
        text = re.sub(r"\bDoctor (?=[A-Z])", "Dr. ", text)
    if style.digits_from < 10**12:

        def day(tens: str | None, ordinal: str) -> str:
            number = {"twenty-": 20, "thirty-": 30}.get(tens or "", 0) + _ORDINALS[ordinal]
            ending = "th" if number in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
            return f"{number}{ending}"

        text = re.sub(rf"{_DAY}(?= of (?:{_MONTHS}))", lambda m: day(m[1], m[2]), text)
        text = re.sub(rf"((?:{_MONTHS}) (?:the )?){_DAY}", lambda m: m[1] + day(m[2], m[3]), text)
        text = re.sub(r"\b(\w+) oh (\w+)\b", _oh_year, text)
        text = _NUMBER.sub(lambda m: _number(m, style), text)
        text = re.sub("\0 (dollars|percent)", "", text).replace("\0", "")
    if not style.punctuated:
        text = re.sub(r"[,;:!?\"]|(?<![A-Z])\.(?!\w)|(?<=[a-z0-9])\.$", "", text)
    return text.lower() if style.lower else text


def _oh_year(match: re.Match) -> str:
    century, year = _VALUES.get(match[1]), _VALUES.get(match[2])
    return match[0] if century is None or year is None else f"{century}0{year}"


def misspelled(word: str, rng: random.Random) -> str:
    """A name as it may sound (Kowalski -> Covalski), or another word without its ending or with one too many."""
    core = word.rstrip(".,;:!?\"'")
    if not core.isalpha() or len(core) < 5:
        return word
    if core[0].isupper():
        rules = [(a, b) for a, b in _SPELLINGS if a in core[1:]]
        if rules:
            old, new = rng.choice(rules)
            at = core.rindex(old)
            return core[:at] + new + core[at + len(old) :] + word[len(core) :]
    elif core.endswith(("s", "ed")):
        return core.removesuffix("s").removesuffix("ed") + word[len(core) :]
    elif core.endswith(("t", "d", "k", "n", "r", "l")):
        return core + "s" + word[len(core) :]
    return word


def misheard(sentence: str, kept: Sequence[str], style: Style, rng: random.Random) -> str:
    """The sentence with words mistaken or dropped, except inside the phrases of `kept` (the answers)."""
    if not style.mistakes:
        return sentence
    words = [(m.start(), m.end()) for m in re.finditer(r"\S+", sentence)]
    guarded = [(m.start(), m.end()) for phrase in kept for m in re.finditer(re.escape(phrase), sentence, re.IGNORECASE)]
    out = []
    for start, end in words:
        word = sentence[start:end]
        core = word.strip(".,;:!?\"'").lower()
        if any(start < high and end > low for low, high in guarded) or rng.random() > style.mistakes:
            out.append(word)
        elif core in _ALIKE and rng.random() < 0.7:
            other = rng.choice(_ALIKE[core])
            out.append(word.lower().replace(core, other.capitalize() if word[0].isupper() else other))
        elif core not in _SHORT:
            out.append(misspelled(word, rng))
        elif not out or out[-1]:
            out.append("" if rng.random() < 0.8 else word)
    return " ".join(w for w in out if w)
