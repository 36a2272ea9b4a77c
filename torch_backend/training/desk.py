"""Order-desk recordings in the space of speech tokens, with questions, for training the decoder.

A recording is put together from token clips (what the frozen encoder made of single digits and orders, or
pseudo-speech) with silence between them: the decoder then trains on hours of "audio" for the price of the
decoder alone. It knows no framework; a batch is numpy.

Letters: N speech tokens, D width, R rows, B batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from speech_xl.schedule import Ratio, Scheduler, StepRandomRatio, whole_pass
from torch_backend.training import grammar
from torch_backend.training.text import ANSWER, BEGIN, END

TOKENS_PER_SECOND = 12.5
UNNUMBERED, ELSEWHERE = 100, -1


@dataclass(frozen=True)
class TokenClip:
    """One spoken digit or order as speech tokens."""

    vectors: np.ndarray  # (N, D) float16 or float32
    slots: dict[str, str] | None = None
    words: tuple[str, ...] | None = None


class ClipPool(Protocol):
    """Where a desk takes its clips from."""

    def number(self, rng: random.Random, number: int) -> np.ndarray: ...
    def order(self, rng: random.Random) -> TokenClip: ...
    def silence(self, rng: random.Random, tokens: int) -> np.ndarray: ...
    def said(self, vectors: np.ndarray) -> np.ndarray: ...  # (N,) int64: the word each token says, or -1


def nearest_word(vectors: np.ndarray, embeddings: np.ndarray, blank: int) -> np.ndarray:
    """(N, D) speech tokens -> (N,) int64: the token whose embedding is nearest, -1 for the blank."""
    nearest = (vectors @ embeddings.T).argmax(1)
    return np.where(nearest == blank, -1, nearest)


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    kind: str  # a slot's name, "transcribe" or "absent"
    number: int  # the order's


@dataclass(frozen=True)
class DeskSample:
    speech: np.ndarray  # (N, D) float32
    numbers: np.ndarray  # (N,) int64: the number of the order a token is part of, UNNUMBERED, or ELSEWHERE
    said: np.ndarray  # (N,) int64: the word that a token says, -1 for none
    questions: list[Question]


def ask_about(number: int, clip: TokenClip, kind: str, rng: random.Random) -> Question:
    """A question of one kind about a numbered order, in one of its wordings."""
    if kind == "transcribe":
        template, answer = rng.choice(grammar.TRANSCRIBE), " ".join(clip.words or ())
    else:
        template = rng.choice(grammar.QUESTIONS[kind]) if rng.random() < 0.3 else grammar.QUESTIONS[kind][0]
        answer = (clip.slots or {}).get(kind, grammar.NOT_MENTIONED)
    return Question(template.format(n=number), answer, kind, number)


def build_sample(
    rng: random.Random,
    pool: ClipPool,
    numbered: int,
    plain: int,
    questions: int,
    transcripts: float,
    thin: float = 0.0,
) -> DeskSample:
    """One recording of `numbered` askable and `plain` un-numbered orders, and some questions about it.

    `transcripts` is the share of questions that ask for the order's words; `thin` the share of blank tokens
    that is left out.
    """
    plan: list[int | None] = [*rng.sample(range(100), numbered), *[None] * plain]
    rng.shuffle(plan)
    parts: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    asked: list[tuple[int, TokenClip]] = []

    def lay(vectors: np.ndarray, number: int = ELSEWHERE) -> None:
        parts.append(vectors)
        numbers.append(np.full(len(vectors), number))

    def gap(low: float, high: float) -> None:
        lay(pool.silence(rng, round(rng.uniform(low, high) * TOKENS_PER_SECOND)))

    for number in plan:
        gap(0.1, 1.2)
        if number is not None:
            lay(pool.number(rng, number))
            gap(0.1, 0.4)
        clip = pool.order(rng)
        lay(clip.vectors, UNNUMBERED if number is None else number)
        if number is not None:
            asked.append((number, clip))
    gap(0.3, 1.0)

    chosen = []
    absent = sorted(set(range(100)) - {n for n, _ in asked})
    for _ in range(questions):
        if not asked or rng.random() < 0.03:
            kind = rng.choice(list(grammar.QUESTIONS))
            number = rng.choice(absent)
            text = grammar.QUESTIONS[kind][0].format(n=number)
            chosen.append(Question(text, grammar.NOT_MENTIONED, "absent", number))
            continue
        number, clip = rng.choice(asked)
        if clip.words is not None and rng.random() < transcripts:
            kind = "transcribe"
        else:  # two thirds about slots that the order names: "not mentioned" is the easy answer
            named = [k for k in grammar.QUESTIONS if k in (clip.slots or {})]
            kinds = named if rng.random() < 0.66 else [k for k in grammar.QUESTIONS if k not in named] or named
            kind = rng.choice(kinds)
        chosen.append(ask_about(number, clip, kind, rng))
    speech, about = np.concatenate(parts).astype(np.float32), np.concatenate(numbers)
    if thin:
        dropped = np.random.default_rng(rng.getrandbits(32)).random(len(speech)) < thin
        kept = ~dropped | (pool.said(speech) >= 0)
        speech, about = speech[kept], about[kept]
    return DeskSample(speech, about, pool.said(speech), chosen)


@dataclass(frozen=True)
class Batch:
    """B recordings padded to one row layout [prefix | speech | SSTs | text]."""

    speech: np.ndarray  # (B, N, D) float32
    prefix_ids: np.ndarray  # (P,) int64
    text_ids: np.ndarray  # (B, T) int64
    targets: np.ndarray  # (B, T) int64: the next token where it counts in the loss, else -1
    question_of_row: np.ndarray  # (B, T) int64: which question a text row belongs to
    numbers: np.ndarray  # (B, R) int64: the order that a speech, SST or answer row is about, as in DeskSample
    under_ssts: np.ndarray  # (W, 3) int64: (sample, row, word) for each word said under each SST
    query_positions: np.ndarray  # (B, R) int64
    key_positions: np.ndarray  # (B, R) int64
    mask: np.ndarray  # (B, 1, R, R) bool
    ssts: int
    kinds: list[list[str]]

    @property
    def sst_rows(self) -> slice:
        start = len(self.prefix_ids) + self.speech.shape[1]
        return slice(start, start + self.ssts)


def collate(
    samples: Sequence[DeskSample],
    tokenizer: Tokenizer,
    interval: int,
    ratios: Sequence[Ratio],
    seed: int,
    first_sample: int,
    longest_skip: int = 0,
    uniform: float = 0.0,
) -> Batch:
    """Pad samples into one masked pass; ratios are drawn per interval from `ratios` (step-random).

    `uniform`: this share of the samples keeps one of the ratios throughout.
    `longest_skip`: up to so many memory slots are pretended between intervals (see schedule.whole_pass).
    """
    prefix = tokenizer.encode(BEGIN).ids
    passes, texts, heard_until, spans = [], [], [], []
    for number, sample in enumerate(samples):
        rng = random.Random(f"{seed}/{first_sample + number}")
        allowed = (rng.choice(ratios),) if rng.random() < uniform else tuple(ratios)
        policy = StepRandomRatio(allowed, seed, first_sample + number)
        plans = list(Scheduler(interval, policy, len(prefix)).plan_all(len(sample.speech)))
        blocks = [
            (tokenizer.encode(q.text + ANSWER).ids, tokenizer.encode(q.answer + END).ids) for q in sample.questions
        ]
        skipped = None
        if longest_skip:
            generator = np.random.default_rng([seed, first_sample + number])
            total = generator.integers(0, longest_skip + 1) if generator.random() < 0.5 else 0
            skipped = np.sort(generator.integers(0, total + 1, len(plans) + 1))
        passes.append(whole_pass(len(prefix), plans, [len(q) + len(a) - 1 for q, a in blocks], skipped))
        texts.append(blocks)
        spans.append(np.concatenate([np.zeros((0, 2), np.int64), *[p.spans for p in plans if p.ssts]]))
        heard_until.append(np.concatenate([np.zeros(0, np.int64), *[p.first_token + p.sst_after for p in plans]]))

    b, p = len(samples), len(prefix)
    n = max(w.speech for w in passes)
    k = max(w.ssts for w in passes)
    t = max(len(w.mask) - p - w.speech - w.ssts for w in passes)
    rows = p + n + k + t
    speech = np.zeros((b, n, samples[0].speech.shape[1]), np.float32)
    numbers = np.full((b, rows), ELSEWHERE, np.int64)
    ids, targets, owner = (np.full((b, t), fill, np.int64) for fill in (0, -1, -1))
    query, key = (np.zeros((b, rows), np.int64) for _ in range(2))
    under_ssts: list[tuple[int, int, int]] = []
    mask = np.zeros((b, 1, rows, rows), bool)
    mask[:, 0, np.arange(rows), np.arange(rows)] = True  # padding rows see themselves: no empty softmax
    for i, (sample, w, blocks) in enumerate(zip(samples, passes, texts, strict=True)):
        speech[i, : w.speech] = sample.speech
        numbers[i, p : p + w.speech] = sample.numbers
        numbers[i, p + n : p + n + w.ssts] = sample.numbers[heard_until[i]]
        for slot, (start, stop) in enumerate(spans[i]):
            words = np.unique(sample.said[start:stop])
            under_ssts += [(i, p + n + slot, word) for word in words[words >= 0]]
        length = len(w.mask) - p - w.speech - w.ssts
        place = np.concatenate([
            np.arange(p), p + np.arange(w.speech), p + n + np.arange(w.ssts), p + n + k + np.arange(length)
        ])  # fmt: skip
        query[i, place], key[i, place] = w.query_positions, w.key_positions
        mask[i, 0, place[:, None], place[None, :]] = w.mask
        at = 0
        for number, (question, answer) in enumerate(blocks):
            sequence = question + answer
            ids[i, at : at + len(sequence) - 1] = sequence[:-1]
            targets[i, at + len(question) - 1 : at + len(sequence) - 1] = answer
            owner[i, at : at + len(sequence) - 1] = number
            answering = slice(p + n + k + at + len(question) - 1, p + n + k + at + len(sequence) - 1)
            numbers[i, answering] = sample.questions[number].number
            at += len(sequence) - 1
    kinds = [[q.kind for q in s.questions] for s in samples]
    said = np.array(under_ssts, np.int64).reshape(-1, 3)
    return Batch(speech, np.array(prefix), ids, targets, owner, numbers, said, query, key, mask, k, kinds)
