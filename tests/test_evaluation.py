"""Evaluation: recordings hold what they claim, and the figures count what they say."""

from __future__ import annotations

import random

import numpy as np
import pytest
from evaluation.order_desk import AskedQuestion, build_recording

from evaluation.metrics import Answered, report
from recipes.order_desk import grammar
from recipes.order_desk.corpus import Clip
from speech_xl.config import SAMPLING_RATE


def marked_clips() -> tuple[list[Clip], list[Clip]]:
    """Orders and digits whose samples say which they are: a constant each."""
    rng = random.Random(0)
    orders = [
        Clip(np.full(SAMPLING_RATE, 1000 + i, np.int16), None, grammar.sample_slots(rng), None, str(i), "human", str(i))
        for i in range(6)
    ]
    digits = [
        Clip(np.full(4000, 100 + d, np.int16), (grammar.DIGIT_WORDS[d],), None, d, "v", "human", f"d{d}")
        for d in range(10)
    ]
    return orders, digits


@pytest.mark.parametrize("minutes", [0, 3])
def test_questions_point_at_the_order_they_ask_about(minutes: int) -> None:
    orders, digits = marked_clips()
    recording = build_recording(orders, digits, numbered=4, plain=3, seed=1, least_seconds=60 * minutes)
    assert len(recording.questions) == 4 * len(grammar.QUESTIONS)
    assert len(recording.samples) >= 60 * minutes * SAMPLING_RATE
    values = np.round(recording.samples * 32768).astype(int)
    for question in recording.questions:
        span = values[round(question.start * SAMPLING_RATE) : round(question.end * SAMPLING_RATE)]
        heard = [v for v in dict.fromkeys(span.tolist()) if v]
        tens, ones = divmod(question.number, 10)
        assert heard[0] == 100 + tens and (100 + ones) in heard
        order = orders[heard[-1] - 1000]
        assert question.answer == order.slots.get(question.slot, grammar.NOT_MENTIONED)


def test_the_same_seed_gives_the_same_recording() -> None:
    orders, digits = marked_clips()
    first, second, other = (build_recording(orders, digits, 3, 2, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.samples, second.samples) and first.questions == second.questions
    assert first.questions != other.questions


def answered(
    answer: str, said: str, strongest: tuple[float, float] | None = (1.0, 2.0), slot: str = "size"
) -> Answered:
    return Answered(AskedQuestion("?", answer, slot, 7, 0.0, 1.5), said, strongest)


def test_figures_count_what_they_say() -> None:
    figures = report([
        answered("small", "Small "),  # right, whatever the case and the spaces
        answered("large", "small"),  # wrong, and right for another order: swapped
        answered("medium", "not mentioned"),  # wrong: missed
        answered("twelve ounce", "twelve ounce", strongest=(5.0, 6.0)),  # right for the wrong reason
        answered("not mentioned", "not mentioned"),
        answered("not mentioned", "large"),
    ])  # fmt: skip
    assert figures["mentioned"] == 0.5 and figures["not_mentioned"] == 0.5 and figures["size"] == 0.5
    assert figures["evidence"] == 0.5
    assert figures["missed"] == 0.5 and figures["swapped"] == 1.0  # "not mentioned" is another's answer too
