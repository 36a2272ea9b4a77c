"""Order-desk recordings with questions and right answers, out of clips that training never heard.

A numbered order is two spoken digits of one voice and one order; un-numbered orders are the haystack. It
knows clips and sample counts, no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.order_desk.corpus import Clip
from recipes.order_desk.grammar import NOT_MENTIONED, QUESTIONS
from speech_xl.config import SAMPLING_RATE


@dataclass(frozen=True)
class AskedQuestion:
    """A question about one numbered order, and where that is spoken."""

    text: str
    answer: str
    slot: str
    number: int
    start: float  # seconds of the numbered order in the recording
    end: float


@dataclass(frozen=True)
class DeskRecording:
    """Orders one after another, and questions about them."""

    samples: np.ndarray  # (n,) float32, 16 kHz
    questions: list[AskedQuestion]


def build_recording(
    orders: Sequence[Clip],
    digits: Sequence[Clip],
    numbered: int,
    plain: int,
    seed: int,
    noise: np.ndarray | None = None,
    snr_db: float = 20.0,
    least_seconds: float = 0.0,
) -> DeskRecording:
    """Lay `numbered` askable and `plain` other orders one after another, every one asked for every slot.

    `least_seconds` spreads them evenly with silence until the recording is that long.
    """
    rng = random.Random(seed)
    voices: dict[str, dict[int, list[Clip]]] = {}
    for clip in digits:
        assert clip.digit is not None
        voices.setdefault(clip.speaker, {}).setdefault(clip.digit, []).append(clip)
    plan: list[int | None] = [*rng.sample(range(100), numbered), *[None] * plain]
    rng.shuffle(plan)
    parts: list[np.ndarray] = []
    questions: list[AskedQuestion] = []
    deck: list[Clip] = []
    spoken = sum(len(c.samples) for c in orders) / len(orders) / SAMPLING_RATE + 2.5
    stretch = max(0.0, least_seconds / max(1, len(plan)) - spoken)

    def pause(low: float, high: float) -> None:
        parts.append(np.zeros(int(rng.uniform(low, high) * SAMPLING_RATE), np.float32))

    def now() -> float:
        return sum(map(len, parts)) / SAMPLING_RATE

    for number in plan:
        pause(0.4 + stretch, 1.2 + stretch)
        start = now()
        if number is not None:
            voice = voices[rng.choice(sorted(voices))]
            for digit in divmod(number, 10):
                parts.append(rng.choice(voice[digit]).samples.astype(np.float32) / 32768)
                pause(0.05, 0.25)
            pause(0.2, 0.4)
        if not deck:
            deck = rng.sample(list(orders), len(orders))
        order = deck.pop()
        parts.append(order.samples.astype(np.float32) / 32768)
        if number is not None and order.slots is not None:
            end = now()
            for slot, wordings in QUESTIONS.items():
                answer = order.slots.get(slot, NOT_MENTIONED)
                questions.append(AskedQuestion(wordings[0].format(n=number), answer, slot, number, start, end))
    pause(0.5, 1.0)
    missing = least_seconds - now()
    if missing > 0:
        pause(missing, missing + 0.1)
    samples = np.concatenate(parts)
    if noise is not None:
        bed = np.resize(noise, samples.shape)
        speech = np.sqrt(np.mean(samples[np.abs(samples) > 0.01] ** 2))
        samples = samples + bed * (speech / (np.sqrt(np.mean(bed**2)) + 1e-9) * 10 ** (-snr_db / 20))
    return DeskRecording(np.clip(samples, -1, 1).astype(np.float32), questions)
