"""How right one answer is: exact match, token F1, word errors, multiple choice, evidence.

Every score is a pair (points, of how many), so that a figure over many items is the sum of the points by the sum of
what they are of: a share of right answers, or errors by words. It knows text and seconds; no file and no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

NOT_MENTIONED = "not mentioned"  # the right answer about what was not said; such questions are scored apart
ARTICLES = frozenset(("a", "an", "the"))
# "B", "(b)", "B. stone", "The answer is B": a letter that stands alone, or has a mark behind it, at the start.
LETTER = re.compile(
    r"\W*(?:(?:the\s+)?(?:(?:right|correct|final)\s+)?(?:answer|choice|option)(?:\s+is)?\W*)?([a-z])(?:\W*$|[.,):\]])",
    re.IGNORECASE,
)
Scores = dict[str, tuple[float, float]]  # metric -> points, of how many


def normalise(text: str) -> str:
    """Lower case, letters and digits only, articles dropped unless nothing else is left."""
    words = re.sub(r"[\W_]+", " ", text.lower()).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def token_f1(said: str, answer: str) -> float:
    """Harmonic mean of precision and recall over normalised words, as in SQuAD (arXiv 1606.05250)."""
    ours, right = normalise(said).split(), normalise(answer).split()
    shared = sum((Counter(ours) & Counter(right)).values())
    return 2 * shared / (len(ours) + len(right)) if shared else 0.0


def choose(said: str, choices: Sequence[str], letters: Sequence[str] = ()) -> int | None:
    """Which choice an answer takes: the one whose letter it starts with, where choices have letters, else the first
    that it equals, else the first whose words it contains; None: none.
    """
    letter = LETTER.match(said)
    if letter and letter[1].upper() in letters:
        return list(letters).index(letter[1].upper())
    ours, wanted = normalise(said), [normalise(choice) for choice in choices]
    if ours and ours in wanted:
        return wanted.index(ours)
    return next((i for i, choice in enumerate(wanted) if choice and f" {choice} " in f" {ours} "), None)


@cache
def _normalizer() -> EnglishTextNormalizer:
    """Whisper's normaliser of English; without its table of British spellings, which is no part of the library."""
    return EnglishTextNormalizer({})


def error_words(text: str) -> str:
    """Text as word errors are counted on it (arXiv 2212.04356, appendix C)."""
    return _normalizer()(text).strip()


def word_errors(said: str, text: str) -> tuple[int, int]:
    """-> (substitutions + deletions + insertions, words of `text`), both after Whisper's normaliser."""
    found = jiwer.process_words(error_words(text), error_words(said))
    return (
        found.substitutions + found.deletions + found.insertions,
        found.substitutions + found.deletions + found.hits,
    )


def score_transcript(said: str, text: str) -> Scores:
    """{"wer"}: word error rate of what was said against the text, after Whisper's English normaliser."""
    return {"wer": word_errors(said, text)}


def score_answer(
    said: str,
    answer: str,
    choices: Sequence[str] = (),
    span: tuple[float, float] | None = None,
    evidence: tuple[float, float] | None = None,
    letters: Sequence[str] = (),
) -> Scores:
    """Scores of one answer.

    `answer` is a letter where the choices have `letters`. `span` is where the answer is said and `evidence` the
    strongest span that the model names, both in seconds. Evidence counts among right answers only: where a wrong
    answer comes from says nothing.
    """
    if choices:
        taken = choose(said, choices, letters)
        if taken is None:
            right = False
        else:
            right = letters[taken] == answer if letters else normalise(choices[taken]) == normalise(answer)
        scores: Scores = {"choice": (float(right), 1.0)}
    else:
        right = normalise(said) == normalise(answer)
        if normalise(answer) == NOT_MENTIONED:
            return {"not_mentioned": (float(right), 1.0)}
        scores = {"exact": (float(right), 1.0), "f1": (token_f1(said, answer), 1.0)}
    if right and span is not None:
        overlaps = evidence is not None and evidence[0] < span[1] and evidence[1] > span[0]
        scores["evidence"] = (float(overlaps), 1.0)
    return scores
