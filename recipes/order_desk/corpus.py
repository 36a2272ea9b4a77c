"""The spoken clips that training takes its recordings from: synthetic ones in a cache, human ones on disk.

`synthesize` speaks random orders and single digits into shards of a cache folder, `load_tts` reads them,
`load_human` reads a folder of human clips, `split_human` keeps some people's speech out of training. It
knows no model and no augmentation. Samples are int16 at 16 kHz, so that everything fits in memory.

    python -m recipes.order_desk.corpus --cache cache/tts --orders 5000 --digits 4000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

from recipes.order_desk.grammar import DIGIT_WORDS, sample_slots, words_of
from recipes.order_desk.tts import RATE, sample_voice, speak, trim_silence
from speech_xl.errors import RecordingError

SHARD = 500  # clips in one file: what a kill can lose
VALIDATION_VOICE = "yweweler"  # the digit speaker that is never trained on


@dataclass(frozen=True, eq=False)
class Clip:
    """One spoken order (slots is a dict) or one spoken digit (digit is 0..9)."""

    samples: np.ndarray  # (n,) int16, 16 kHz, silence trimmed, peak at half of full scale
    words: tuple[str, ...] | None  # None: a human order, spoken but never transcribed
    slots: dict[str, str] | None
    digit: int | None
    speaker: str
    source: str  # "tts" or "human"
    name: str  # unique; for a human clip its file name


def synthesize(cache_dir: Path, orders: int, digits: int, seed: int, workers: int = 2) -> None:
    """Fill the cache with `orders` spoken orders and `digits` spoken digits; what is there already stays.

    A clip depends on (seed, kind, index) alone, so a larger count later only adds to the cache.
    """
    folder = Path(cache_dir) / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=orders + digits, unit="clip") as bar:
        for kind, total in (("digits", digits), ("orders", orders)):
            for start in range(0, total, SHARD):
                indices = range(start, min(start + SHARD, total))
                path = folder / f"{kind}-{start:06d}.npz"
                if not path.exists() or len(_read_rows(path)) < len(indices):
                    make = _speak_order if kind == "orders" else _speak_digit
                    _write_shard(path, list(pool.map(lambda i, make=make: make(seed, i), indices)))
                bar.update(len(indices))


def _speak_order(seed: int, index: int) -> Clip:
    rng = random.Random(f"order {seed} {index}")
    slots = sample_slots(rng)
    words = words_of(slots, rng)
    text = list(words)
    # People hesitate inside an order; a comma is how an engine is told to.
    while rng.random() < 0.35:
        text[rng.randrange(len(text))] += ","
    voice = sample_voice(rng)
    samples = _normalised(speak(" ".join(text), voice))
    return Clip(samples, tuple(words), slots, None, voice.name, "tts", f"order-{seed}-{index}")


def _speak_digit(seed: int, index: int) -> Clip:
    rng = random.Random(f"digit {seed} {index}")
    digit, voice = index % 10, sample_voice(rng)
    samples = _normalised(speak(DIGIT_WORDS[digit], voice))
    return Clip(samples, (DIGIT_WORDS[digit],), None, digit, voice.name, "tts", f"digit-{seed}-{index}")


def _normalised(samples: np.ndarray) -> np.ndarray:
    """(n,) float -> (n,) int16 whose peak is half of full scale."""
    return np.round(samples * (16384 / max(1e-9, float(np.abs(samples).max())))).astype(np.int16)


def _write_shard(path: Path, clips: Sequence[Clip]) -> None:
    """samples (sum n,) int16 end to end, ends (clips,) int64, rows: one JSON line a clip."""
    rows = [{k: v for k, v in vars(clip).items() if k != "samples"} for clip in clips]
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with open(partial, "wb") as file:
        np.savez(
            file,
            samples=np.concatenate([clip.samples for clip in clips]),
            ends=np.cumsum([len(clip.samples) for clip in clips]),
            rows=np.array([json.dumps(row) for row in rows]),
        )
    os.replace(partial, path)  # a shard is either whole or absent


def _read_rows(path: Path) -> list[dict]:
    with np.load(path) as shard:
        return [json.loads(row) for row in shard["rows"]]


def load_tts(cache_dir: Path) -> tuple[list[Clip], list[Clip]]:
    """All synthetic clips of a cache, of every seed -> (orders, digits)."""
    orders: list[Clip] = []
    digits: list[Clip] = []
    for path in sorted(Path(cache_dir).glob("seed*/*.npz")):
        with np.load(path) as shard:
            samples, rows = np.split(shard["samples"], shard["ends"][:-1]), shard["rows"]
        for part, row in zip(samples, map(json.loads, rows), strict=True):
            clip = Clip(part, **(row | {"words": tuple(row["words"])}))
            (orders if clip.digit is None else digits).append(clip)
    return orders, digits


def load_human(data_dir: Path, trim: bool = True) -> tuple[list[Clip], list[Clip]]:
    """Human clips of a folder with orders/ and digits/, each with its manifest.jsonl -> (orders, digits).

    `trim` False leaves the silence around speech as it was recorded.
    """
    orders: list[Clip] = []
    digits: list[Clip] = []
    for row in _manifest(Path(data_dir) / "orders"):
        name = Path(row["audio"]).name
        # Nobody noted who spoke an order, so each counts as a speaker of its own.
        orders.append(Clip(_human_samples(row["path"], trim), None, row["slots"], None, name, "human", name))
    for row in _manifest(Path(data_dir) / "digits"):
        word, name = DIGIT_WORDS[row["digit"]], Path(row["audio"]).name
        samples = _human_samples(row["path"], trim)
        digits.append(Clip(samples, (word,), None, row["digit"], row["speaker"], "human", name))
    return orders, digits


def _manifest(folder: Path) -> list[dict]:
    path = folder / "manifest.jsonl"
    if not path.exists():
        raise RecordingError(f"{path} is missing: give the folder that holds orders/ and digits/.")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row | {"path": folder / row["audio"]} for row in rows]


def _human_samples(path: Path, trim: bool) -> np.ndarray:
    samples, rate = sf.read(path, dtype="float32")
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    # A wider margin than for synthetic speech: real breath and weak last consonants fade slowly, and the
    # hum of real rooms before and after has to be heard as nothing.
    return _normalised(trim_silence(samples, margin_seconds=0.35) if trim else samples)


def split_human(
    orders: Sequence[Clip],
    digits: Sequence[Clip],
    validation_voice: str,
    fraction: float = 0.2,
    seed: int = 0,
) -> tuple[list[Clip], list[Clip], list[Clip], list[Clip]]:
    """-> (train_orders, val_orders, train_digits, val_digits); what is called val is never trained on.

    Digits are kept apart by speaker, orders by a hash of their file name, so that the split neither
    depends on the order of the clips nor changes when clips are added.
    """
    held = [zlib.crc32(f"{seed} {clip.name}".encode()) < fraction * 2**32 for clip in orders]
    if not any(clip.speaker == validation_voice for clip in digits):
        voices = ", ".join(sorted({clip.speaker for clip in digits}))
        raise ValueError(f"no digit is spoken by {validation_voice!r}; the voices are {voices}")
    return (
        [clip for clip, out in zip(orders, held, strict=True) if not out],
        [clip for clip, out in zip(orders, held, strict=True) if out],
        [clip for clip in digits if clip.speaker != validation_voice],
        [clip for clip in digits if clip.speaker == validation_voice],
    )


def main() -> None:
    """Speak the clips that the cache lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the cache, made if missing")
    parser.add_argument("--orders", type=int, default=4000, help="spoken orders to hold (4000)")
    parser.add_argument("--digits", type=int, default=3000, help="spoken digits to hold (3000)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other clips")
    parser.add_argument("--workers", type=int, default=2, help="clips spoken at once (2)")
    args = parser.parse_args()
    synthesize(args.cache, args.orders, args.digits, args.seed, args.workers)


if __name__ == "__main__":
    main()
