"""What the trained encoder makes of every training clip, kept on disk for the decoder's stages.

The encoder's attention never leaves its window, so a clip's speech tokens are nearly the same in any
recording: they are computed once (in several augmented copies, among changing neighbours) and recordings
are put together from them. It knows no questions and no decoder.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tqdm import tqdm

from speech_xl.config import SAMPLING_RATE
from torch_backend.encoder import SpeechTower
from torch_backend.training.alignment import (
    Ruler,
    SpeechData,
    Utterance,
    background,
    hear,
    lay_tape,
    self_label,
    waveform,
)
from torch_backend.training.augment import augment
from torch_backend.training.corpus import Clip
from torch_backend.training.desk import TokenClip, nearest_word

TAPE = 16  # utterances on one tape


@dataclass(frozen=True)
class EncodingPlan:
    """How many augmented copies of what; a share of 1 in `strength` is the full augmentation."""

    human_order_copies: int
    synthetic_orders: int
    human_numbers: int  # per voice
    synthetic_numbers: int
    strength: float
    formants: float = 0.0  # largest stretch of frequencies, as a natural logarithm
    trim: bool = True  # False: human clips with all the silence around them, as recordings have it


@dataclass
class EncodedPool:
    """A ClipPool of real clips. People speak `human` of the orders and numbers, engines the rest."""

    human_orders: list[TokenClip]
    synthetic_orders: list[TokenClip]
    human_numbers: dict[int, list[np.ndarray]]
    synthetic_numbers: dict[int, list[np.ndarray]]
    pauses: list[np.ndarray]
    human: float = 0.6
    embeddings: np.ndarray | None = None  # (vocab_size, D) and
    blank_id: int = 0  # the blank's row: only `said` needs them

    def said(self, vectors: np.ndarray) -> np.ndarray:
        return nearest_word(vectors, self.embeddings, self.blank_id)

    def number(self, rng: random.Random, number: int) -> np.ndarray:
        voices = (self.human_numbers, self.synthetic_numbers)
        first, second = voices if rng.random() < self.human else voices[::-1]
        return rng.choice(first.get(number) or second[number])

    def order(self, rng: random.Random) -> TokenClip:
        chosen = self.human_orders if rng.random() < self.human else self.synthetic_orders
        return rng.choice(chosen or self.synthetic_orders or self.human_orders)

    def silence(self, rng: random.Random, tokens: int) -> np.ndarray:
        pause = rng.choice(self.pauses)
        at = rng.randrange(max(1, len(pause) - tokens))
        return pause[at : at + tokens]


def spoken_number(rng: random.Random, clips: Sequence[Clip]) -> np.ndarray:
    """Two digit clips with an order desk's gap, (n,) float32."""
    gap = np.zeros(int(rng.uniform(0.05, 0.25) * SAMPLING_RATE), np.float32)
    return np.concatenate([waveform(clips[0]), gap, waveform(clips[1])])


def encode(
    tower: SpeechTower, sounds: Sequence[np.ndarray], seed: int, plan: EncodingPlan, noise: np.ndarray | None
) -> list[np.ndarray]:
    """Each sound (n,) float32, augmented, as speech tokens (N, D) float16; neighbours on its tape are random."""
    rng, noise_rng = random.Random(seed), np.random.default_rng(seed)
    order = list(range(len(sounds)))
    rng.shuffle(order)
    found: dict[int, np.ndarray] = {}
    for start in tqdm(range(0, len(order), TAPE), unit="tape", desc="encoding"):
        chosen = order[start : start + TAPE]
        utterances = [Utterance(augment(sounds[i], noise_rng, plan.strength, noise), []) for i in chosen]
        tape = lay_tape(tower.config, utterances, rng)
        if noise_rng.random() < plan.strength:
            tape.samples[:] += background(len(tape.samples), noise_rng)
        with torch.inference_mode():
            speech = hear(tower, tape.samples, noise_rng, formants=plan.formants).half().numpy()
        for i, span in zip(chosen, tape.spans, strict=True):
            found[i] = speech[span].copy()
    return [found[i] for i in range(len(sounds))]


def encode_pauses(tower: SpeechTower, seed: int, count: int = 40, seconds: float = 15.0) -> list[np.ndarray]:
    """Silence and hum of several kinds, each (N, D) float16."""
    rng = np.random.default_rng(seed)
    n = int(seconds * SAMPLING_RATE)
    with torch.inference_mode():
        return [
            hear(tower, np.zeros(n, np.float32) if i % 2 else background(n, rng)).half().numpy() for i in range(count)
        ]


def numbers_of(clips: Sequence[Clip], count: int, rng: random.Random) -> list[tuple[int, np.ndarray]]:
    """`count` spoken numbers, evenly over 0..99, out of single digits."""
    by_digit: dict[int, list[Clip]] = {}
    for clip in clips:
        by_digit.setdefault(clip.digit, []).append(clip)
    numbers = [i % 100 for i in range(count)]
    return [(n, spoken_number(rng, [rng.choice(by_digit[d]) for d in divmod(n, 10)])) for n in numbers]


def build_pool(
    tower: SpeechTower, ruler: Ruler, tokenizer: Tokenizer, data: SpeechData, plan: EncodingPlan, seed: int
) -> EncodedPool:
    """Encode everything that `plan` asks for."""
    rng = random.Random(seed)
    labels = self_label(tower, ruler, tokenizer, data.human_orders)
    human = [(clip, words) for clip, words in zip(data.human_orders, labels, strict=True)] * plan.human_order_copies
    synthetic = [(c, c.words) for c in data.synthetic_orders[: plan.synthetic_orders]]
    numbers = [
        pair
        for voice in sorted(data.human_voices)
        for pair in numbers_of(
            [c for clips in data.human_voices[voice].values() for c in clips], plan.human_numbers, rng
        )
    ]
    synthetic_numbers = numbers_of(data.synthetic_digits, plan.synthetic_numbers, rng)
    sounds = [waveform(c) for c, _ in human + synthetic] + [s for _, s in numbers + synthetic_numbers]
    vectors = iter(encode(tower, sounds, seed, plan, data.noise))

    def grouped(pairs: Sequence[tuple[int, np.ndarray]]) -> dict[int, list[np.ndarray]]:
        groups: dict[int, list[np.ndarray]] = {}
        for number, _ in pairs:
            groups.setdefault(number, []).append(next(vectors))
        return groups

    human_orders = [TokenClip(next(vectors), c.slots, words) for c, words in human]
    synthetic_orders = [TokenClip(next(vectors), c.slots, words) for c, words in synthetic]
    return EncodedPool(
        human_orders, synthetic_orders, grouped(numbers), grouped(synthetic_numbers), encode_pauses(tower, seed)
    )


def save_pool(pool: EncodedPool, path: Path) -> None:
    """Write a pool as one safetensors file, whole or not at all: vectors end to end, one JSON row a clip."""
    rows, vectors = [], []
    for kind in ("human_orders", "synthetic_orders"):
        for clip in getattr(pool, kind):
            rows.append({"kind": kind, "slots": clip.slots, "words": clip.words})
            vectors.append(clip.vectors)
    for kind in ("human_numbers", "synthetic_numbers"):
        for number, clips in getattr(pool, kind).items():
            rows += [{"kind": kind, "number": number}] * len(clips)
            vectors += clips
    rows += [{"kind": "pauses"}] * len(pool.pauses)
    vectors += pool.pauses
    tensors = {"vectors": np.concatenate(vectors), "ends": np.cumsum([len(v) for v in vectors])}
    partial = path.with_suffix(".part")
    save_file(tensors, partial, metadata={"rows": json.dumps(rows)})
    os.replace(partial, path)


def load_pool(path: Path, human: float) -> EncodedPool:
    """Read what save_pool wrote; people will speak the share `human` of orders and numbers."""
    with safe_open(path, framework="numpy") as file:
        vectors = np.split(file.get_tensor("vectors"), file.get_tensor("ends")[:-1])
        rows = json.loads(file.metadata()["rows"])
    pool = EncodedPool([], [], {}, {}, [], human)
    for row, clip in zip(rows, vectors, strict=True):
        group = getattr(pool, row["kind"])
        if "slots" in row:
            group.append(TokenClip(clip, row["slots"], tuple(row["words"])))
        elif "number" in row:
            group.setdefault(row["number"], []).append(clip)
        else:
            group.append(clip)
    return pool
