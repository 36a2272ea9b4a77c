"""Which of many short texts a question is about: words in common, rare ones first.

Attention to compressed slots finds a passage among few; among many, the words themselves find it more surely. A number
points more surely still: where it was said, the answer is said, too. It knows English text alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from speech_xl.spoken_numbers import FIGURES, asked_numbers, number_matches

STEM = 5  # letters that words in common share: "repaired" finds "repair"
NEIGHBOUR = 0.4  # of its score that a text gives the ones beside it: borders cut sentences
CALLED, LEAST_SAID = 2, 4  # words beside a number that is called out; words of a sentence that says something
_SENTENCE = re.compile(r"[^.?!]+[.?!]*")
_WORD = re.compile(r"\d+|[^\W\d_]+")
_FIGURES = {word: str(n) for n, word in enumerate(FIGURES)}
_EMPTY = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "i",
        "in",
        "is",
        "it",
        "its",
        "many",
        "much",
        "my",
        "of",
        "on",
        "or",
        "our",
        "said",
        "she",
        "some",
        "that",
        "the",
        "their",
        "them",
        "there",
        "they",
        "this",
        "to",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "you",
        "your",
    ]
)


def stems(text: str) -> list[str]:
    """Stems of a text's words and its numbers; figures that were said one by one ("4, 7", "four seven") are one number too."""
    words = [_FIGURES.get(word, word) for word in _WORD.findall(text.lower())]
    found = [word if word.isdigit() else word[:STEM] for word in words if word not in _EMPTY]
    for first, second in pairwise(words):
        if first.isdigit() and second.isdigit() and len(first) == len(second) == 1:
            found.append(first + second)
    return found


def relevance(question: str, texts: Sequence[str]) -> np.ndarray:
    """(n,) float64: how much of the question stands in each of n texts that follow one another; 0 where nothing does."""
    wanted = set(stems(question))
    held = [wanted.intersection(stems(text)) for text in texts]
    count = {stem: sum(stem in found for found in held) for stem in wanted}
    own = np.array([sum(np.log(1 + len(texts) / count[stem]) for stem in found) for found in held])
    beside = np.maximum(np.append(0.0, own[:-1]), np.append(own[1:], 0.0))
    total: np.ndarray = own + NEIGHBOUR * beside
    return total


def holders(question: str, texts: Sequence[str]) -> list[int]:
    """Which of n texts that follow one another hold the numbers of a question, in whatever spelling; [] if it has none.

    A number may begin in one text and end in the next; it belongs to the one where it begins. Of several numbers, the
    texts that hold the most of them count.
    """
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    joined = " ".join(texts)
    found = np.zeros(len(texts), np.int64)
    for figures in set(asked_numbers(question)):
        places = [match.start() for match in number_matches(figures, joined)]
        found[np.unique(np.searchsorted(starts, places, side="right") - 1)] += 1
    return np.flatnonzero(found == found.max()).tolist() if found.any() else []


def announced(question: str, text: str) -> list[tuple[int, int]]:
    """Where a text says a question's numbers alone, as one calls out a number, each with the sentence that follows it.

    [first, past the last) characters of each place. A number is alone if its sentence has at most CALLED other words
    ("Order six two."). A sentence too short to say anything takes the one behind it along.
    """
    sentences = [match.span() for match in _SENTENCE.finditer(text)]
    places = []
    for figures in dict.fromkeys(asked_numbers(question)):
        for match in number_matches(figures, text):
            own = [n for n, (start, stop) in enumerate(sentences) if start < match.end() and stop > match.start()]
            first, last = sentences[own[0]][0], own[-1]
            beside = text[first : match.start()] + text[match.end() : sentences[last][1]]
            if len(_WORD.findall(beside)) > CALLED:
                continue
            following = sentences[last + 1 :]
            enough = 2 if following and len(_WORD.findall(text[slice(*following[0])])) < LEAST_SAID else 1
            places.append((first, following[:enough][-1][1] if following else sentences[last][1]))
    return places
