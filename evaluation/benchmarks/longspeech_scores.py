"""The table of LongSpeech (arXiv 2601.13539): its metrics of each task, in percent.

The paper's own scorer is not public. What it leaves open is decided here and said in docs/benchmarks_public.md: how
text is normalised, and how a number, a language or an emotion is read out of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import jiwer
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from evaluation.benchmarks.benchmark import Answered, Scores
from evaluation.metrics import error_words

Figures = dict[str, float | None]
CJK = frozenset(("zh", "ja", "ko", "yue"))
NORMALIZER = BasicTextNormalizer()  # Whisper's of any language: lower case, letters and digits
EMOTIONS = {  # coarse emotion: (polarity, its fine emotions), section 3.2.2
    "positive-higharousal": ("positive", ("excited", "amused")),
    "positive-uplifting": ("positive", ("hopeful", "determined", "inspirational", "awe", "vivid")),
    "negative-sadness/reflection": ("negative", ("melancholy", "somber", "pensive", "reflective")),
    "negative-tension/seriousness": ("negative", ("suspenseful", "serious", "dramatic", "urgent", "intense")),
    "cognitive-curiosity": ("cognitive", ("intrigued", "questioning")),
    "cognitive-uncertainty": ("cognitive", ("confused",)),
    "neutral-informative": ("neutral", ("neutral", "calm", "objective", "informative", "assertive")),
}
COARSE = {name: coarse for coarse, (_, fine) in EMOTIONS.items() for name in (coarse, *fine)}
EMOTION = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(COARSE, key=len, reverse=True)))})(?!\w)")
CODES = LANGUAGES.keys()
LANGUAGE = re.compile(rf"\b(?:{'|'.join(sorted(TO_LANGUAGE_CODE, key=len, reverse=True))})\b")


def score(answered: Sequence[Answered]) -> Scores:
    """The figures of each task that was asked, and notes on how they differ from the published ones."""
    by_task: dict[str, list[Answered]] = {}
    for each in answered:
        by_task.setdefault(each.item.kind, []).append(each)
    figures: Figures = {}
    notes: list[str] = []
    for task, scorer in SCORERS.items():
        if task in by_task:
            figures |= scorer(by_task[task])
    if "Temporal_Relative_QA" in by_task:
        notes.append(
            "Temporal_Relative_QA has no figure here: the paper has a model of another maker judge the answers; exact "
            "match and token F1 of them are below."
        )
    for task, reads in (
        ("speaker_count", read_number),
        ("content_separation", read_number),
        ("emotionQA", read_emotion),
    ):
        unread = sum(reads(each.right) is None for each in by_task.get(task, ()))
        if unread:
            notes.append(f"{task}: nothing can be read out of {unread} right answers; their lines count as wrong.")
    return Scores(figures, notes)


def score_speech(answered: Sequence[Answered]) -> Figures:
    """Word errors where words are written apart, character errors of Chinese, Japanese and Korean, and of everything."""
    words, characters, every = [0, 0], [0, 0], [0, 0]
    for each in answered:
        right, said = NORMALIZER(each.right).strip(), NORMALIZER(each.said).strip()
        found = _errors(jiwer.process_characters(right.replace(" ", ""), said.replace(" ", "")))
        totals = [every]
        if _code(each.fields["language"]) in CJK:
            totals.append(characters)
        else:
            _add(words, _errors(jiwer.process_words(right, said)))
        for total in totals:
            _add(total, found)
    return {"ASR: WER": _percent(words), "ASR: CER of CJK": _percent(characters), "ASR: CER": _percent(every)}


def _errors(found: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int]:
    """-> (errors, units of the right text)."""
    return (
        found.substitutions + found.deletions + found.insertions,
        found.substitutions + found.deletions + found.hits,
    )


def _add(total: list[int], more: tuple[int, int]) -> None:
    total[0] += more[0]
    total[1] += more[1]


def _percent(total: Sequence[float]) -> float | None:
    return 100 * total[0] / total[1] if total[1] else None


def score_translation(answered: Sequence[Answered]) -> Figures:
    """BLEU-4 of all together, whatever the case."""
    said, right = [each.said for each in answered], [each.right for each in answered]
    return {"translation: BLEU": sacrebleu.corpus_bleu(said, [right], lowercase=True).score}


def score_summary(answered: Sequence[Answered]) -> Figures:
    """Means of ROUGE-1, 2 and L, each F1."""
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(each.right, each.said) for each in answered]
    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    return {f"summary: {title}": 100 * sum(s[n].fmeasure for s in scores) / len(scores) for n, title in names.items()}


def score_numbers(answered: Sequence[Answered], task: str) -> Figures:
    """Numeric accuracy, parsability, precision of what was parsed, and misunderstanding: what was not (section 3.2.1)."""
    read = [(read_number(each.said), read_number(each.right)) for each in answered]
    parsed = sum(said is not None for said, _ in read)
    right = sum(said is not None and said == answer for said, answer in read)
    return {
        f"{task}: N.A": 100 * right / len(read),
        f"{task}: P.R": 100 * parsed / len(read),
        f"{task}: Pr": _percent((right, parsed)),
        f"{task}: M.R": 100 - 100 * parsed / len(read),
    }


def read_number(said: str) -> int | None:
    """The first whole number, in digits or in English words."""
    found = re.search(r"\d+", said) or re.search(r"\d+", error_words(said))
    return int(found[0]) if found else None


def score_languages(answered: Sequence[Answered]) -> Figures:
    """Detected, taken for another language, and not told at all."""
    read = []
    for each in answered:
        answer = read_language(each.right) or _code(each.fields["language"])
        is_same = NORMALIZER(each.said) == NORMALIZER(each.right)  # a name that is not English, for instance
        read.append((answer if is_same else read_language(each.said), answer))
    right = sum(said == answer for said, answer in read)
    silent = sum(said is None for said, _ in read)
    shares = {"D.A": right, "M.R": len(read) - right - silent, "D.E": silent}
    return {f"language_detection: {name}": 100 * count / len(read) for name, count in shares.items()}


def read_language(said: str) -> str | None:
    """Its code: an answer that is a code, a tag like <|en|>, or the first language that is named in English."""
    lower = said.strip().lower()
    alone = re.sub(r"\W", "", lower)
    if alone in CODES:
        return alone
    tag = re.search(r"<\|([a-z]{2,3})\|>", lower)
    if tag and tag[1] in CODES:
        return tag[1]
    found = LANGUAGE.search(lower)
    return TO_LANGUAGE_CODE[found[0]] if found else None


def _code(language: str) -> str:
    """The code of a language that a line names by its code, with or without a region, or in English."""
    return read_language(language) or re.split(r"[-_]", language.strip().lower())[0]


def score_emotions(answered: Sequence[Answered]) -> Figures:
    """Strict: the same of seven coarse emotions. Relaxed: the same polarity."""
    read = [(read_emotion(each.said), read_emotion(each.right)) for each in answered]
    known = [(said, answer) for said, answer in read if said is not None and answer is not None]
    return {
        "emotionQA: strict": 100 * sum(said == answer for said, answer in known) / len(read),
        "emotionQA: relaxed": 100 * sum(EMOTIONS[said][0] == EMOTIONS[answer][0] for said, answer in known) / len(read),
    }


def read_emotion(said: str) -> str | None:
    """The coarse emotion of the first one that an answer names, fine or coarse."""
    found = EMOTION.search(re.sub(r"\s*([-/])\s*", r"\1", said.lower()))
    return COARSE[found[0]] if found else None


SCORERS: dict[str, Callable[[Sequence[Answered]], Figures]] = {  # in the order of the table
    "ASR": score_speech,
    "translation": score_translation,
    "summary": score_summary,
    "speaker_count": lambda answered: score_numbers(answered, "speaker_count"),
    "content_separation": lambda answered: score_numbers(answered, "content_separation"),
    "language_detection": score_languages,
    "emotionQA": score_emotions,
}
