"""Chapters of a transcript: where the talk changes its subject, and the words that are each chapter's own.

Segments are joined into the chapters that make their words most probable, each chapter with word frequencies of its own
(Eisenstein and Barzilay, EMNLP 2008: no threshold, nothing to train). The best division is found by dynamic programming.
It knows English stems and seconds; no model and no sound.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import gammaln

from speech_xl.transcript import Segment
from speech_xl.word_search import stems

SHORTEST = 20.0  # seconds of a chapter, ...
MOST_CHAPTERS = 24  # ... and how many there are at most: what a person overlooks
MOST_BLOCKS = 240  # a chapter starts with one of so many blocks of segments: the work does not grow with the recording
PRIOR = 0.2  # times that each stem counts as said in a chapter before it is said: below 1, as chapters use few of all
TITLE_WORDS = 3
_WORD = re.compile(r"[^\W\d_]{3,}(?:['’-][^\W\d_]+)*")
_NAME_NOTHING = frozenset(  # words of talk that say nothing of its subject
    re.findall(
        r"\w+",
        "about after again all also always another any around back because been before being between both but came can cannot "
        "come could day does doing done down each eight else ever every five four gave get gets give goes going good got great "
        "half here him himself hundred into just keep know last later least left less let like little long look made make may "
        "maybe mean might mister more most much must myself nearly never new next nine nobody not nothing now off okay old once "
        "one only other out over part people perhaps please put quite rather really right said same say second see seven "
        "several shall should since six small somebody something still such sure take tell ten than thank thanks then these "
        "they thing things think third this those though thought thousand three through time today together told too took "
        "twelve twenty thirty forty fifty two under until upon use used very want wanted way week well went were what when "
        "where which while why without would year years yes yet",
    )
)


@dataclass(frozen=True)
class Chapter:
    """Some of a transcript's segments, one after another."""

    start: float  # seconds, of its first segment
    end: float  # seconds, of its last segment
    title: str  # words of the chapter itself, most typical first; "" where it has none of its own
    first: int  # its segments are [first, stop)
    stop: int


def find_chapters(segments: Sequence[Segment]) -> list[Chapter]:
    """All segments of a recording, in order, as chapters that follow one another; none where nothing was said."""
    if not segments:
        return []
    blocks = _blocks(segments)
    counts = _counts([" ".join(s.text for s in segments[a:b]) for a, b in pairwise(blocks)])
    starts = np.array([segments[b].start for b in blocks[:-1]] + [segments[-1].end])
    shortest = max(SHORTEST, (starts[-1] - starts[0]) / MOST_CHAPTERS)
    borders = [blocks[b] for b in _divide(_costs(counts), starts, shortest)]
    titles = _titles([" ".join(s.text for s in segments[a:b]) for a, b in pairwise(borders)])
    return [
        Chapter(segments[a].start, segments[b - 1].end, title, a, b)
        for (a, b), title in zip(pairwise(borders), titles, strict=True)
    ]


def _blocks(segments: Sequence[Segment]) -> list[int]:
    """Where each block of neighbouring segments starts, and the number of segments; blocks are about equally long."""
    edges = np.linspace(segments[0].start, segments[-1].end, min(len(segments), MOST_BLOCKS) + 1)[1:-1]
    at = [s.start for s in segments] if len(segments) > MOST_BLOCKS else []
    inner = np.unique(np.searchsorted(at, edges)).tolist() if at else range(1, len(segments))
    return [0, *(b for b in inner if 0 < b < len(segments)), len(segments)]


def _counts(texts: Sequence[str]) -> np.ndarray:
    """(blocks, stems) int32: how often each stem that is said more than once stands in each block."""
    found = [Counter(stems(text)) for text in texts]
    total = sum(found, Counter())
    columns = {stem: i for i, stem in enumerate(sorted(s for s, n in total.items() if n > 1))}
    counts = np.zeros((len(texts), len(columns)), np.int32)
    for row, stems_of_block in zip(counts, found, strict=True):
        for stem, n in stems_of_block.items():
            if stem in columns:
                row[columns[stem]] = n
    return counts


def _costs(counts: np.ndarray) -> np.ndarray:
    """(blocks, blocks) float64: at [i, j], minus the log probability of blocks i to j as one chapter; inf below.

    A chapter's words are drawn from frequencies of its own, any of which are as likely as others (a Dirichlet prior of
    PRIOR to each stem), so that many borders do not come for nothing; where a chapter begins costs log blocks.
    """
    blocks, vocabulary = counts.shape
    most = int(counts.sum())
    of_stem = gammaln(np.arange(most + 1) + PRIOR) - gammaln(PRIOR)
    of_length = gammaln(np.arange(most + 1) + PRIOR * max(1, vocabulary)) - gammaln(PRIOR * max(1, vocabulary))
    costs = np.full((blocks, blocks), np.inf)
    for i in range(blocks):
        n = counts[i:].cumsum(axis=0)
        costs[i, i:] = of_length[n.sum(axis=1)] - of_stem[n].sum(axis=1) + np.log(blocks)
    return costs


def _divide(costs: np.ndarray, starts: np.ndarray, shortest: float) -> list[int]:
    """The cheapest borders, 0 and the number of blocks included, that lie `shortest` seconds apart.

    costs (blocks, blocks): of blocks i to j as one chapter; starts (blocks + 1,): seconds of each border.
    """
    blocks = len(costs)
    best, back = np.full(blocks + 1, np.inf), np.zeros(blocks + 1, np.int64)
    best[0] = 0.0
    for j in range(1, blocks + 1):
        through = best[:j] + costs[:j, j - 1]
        through[starts[:j] > starts[j] - shortest] = np.inf
        back[j] = through.argmin()
        best[j] = through[back[j]]
    if not np.isfinite(best[blocks]):  # shorter than a chapter
        return [0, blocks]
    borders = [blocks]
    while borders[-1] > 0:
        borders.append(int(back[borders[-1]]))
    return borders[::-1]


def _titles(texts: Sequence[str]) -> list[str]:
    """Of each chapter the words that it says often and the others seldom, as it says them itself."""
    spoken = [_words(text) for text in texts]
    everywhere: Counter[str] = Counter()
    for words in spoken:
        everywhere.update({stem: forms.total() for stem, forms in words.items()})
    titles = []
    for words in spoken:
        said = {stem: forms.total() for stem, forms in words.items()}
        usual = sum(said.values()) / max(1, everywhere.total())  # share of all words
        weight = {stem: n * np.log(n / (everywhere[stem] * usual)) for stem, n in said.items()}
        # Equal ones in the order they are said.
        best = sorted(words, key=lambda stem: (-weight[stem], -said[stem]))[:TITLE_WORDS]
        forms = [min(words[stem].items(), key=lambda form: -form[1])[0] for stem in best]
        titles.append(", ".join(forms)[:1].upper() + ", ".join(forms)[1:])
    return titles


def _words(text: str) -> dict[str, Counter[str]]:
    """stem -> its forms in a text. A word that is always written large, as a name, stays so."""
    found: dict[str, Counter[str]] = {}
    said = _WORD.findall(text)
    small = {word for word in said if word[0].islower()}
    for word in said:
        stem = stems(word)
        if len(stem) == 1 and word.lower() not in _NAME_NOTHING:
            found.setdefault(stem[0], Counter())[word.lower() if word.lower() in small else word] += 1
    return found
