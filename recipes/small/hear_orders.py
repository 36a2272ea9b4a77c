"""What a recogniser writes when it hears the order desk: human orders and digits, laid in windows of 28 seconds.

Numbers (two digits of one voice) and orders are laid one after another in a window, as on the tape of an order
desk, and the small model's recogniser writes the window down. The transcripts go to a cache of JSON lines, one window a line:
{"split", "round", "window", "orders": [{"number": 0..99 or null, "name", "slots"}, ...], "heard"}. A killed run goes
on where it stopped. It knows nothing of questions; `make_order_data` reads the cache.

    python -m recipes.small.hear_orders --data DATA --model runs/small/base --cache heard_orders.jsonl --rounds 3
"""

from __future__ import annotations

import argparse
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

from recipes.small.order_cache import read_cache
from speech_xl.config import SAMPLING_RATE
from speech_xl.model import SpeechModel
from speech_xl.quiet_windows import lone_window
from speech_xl.recognition import load_recognizer_tokenizer
from speech_xl.word_reader import LARGEST_GROUP, Earlier, WordReader

WINDOW_SECONDS = 28  # what a window of the recogniser holds of a recording
HELD_VOICE = "yweweler"  # the digits' speaker that is never trained on
HELD_FRACTION = 0.2  # of the orders
SPLITS = ("train", "held")


@dataclass(frozen=True)
class Window:
    """Orders that are heard together."""

    samples: np.ndarray  # (n,) float32, 16 kHz, at most 28 s
    orders: list[dict]  # {"number": int or None, "name": str, "slots": dict}, in the order they are spoken


def is_held_order(name: str) -> bool:
    """Whether an order's clip is kept out of training; a hash of its file name, so that new clips move no others."""
    return zlib.crc32(f"0 {name}".encode()) < HELD_FRACTION * 2**32


def read_manifest(folder: Path) -> list[dict]:
    """The clips that a folder's manifest lists, each with its path."""
    return [json.loads(line) | {"path": folder / json.loads(line)["audio"]} for line in open(folder / "manifest.jsonl")]


def load_clip(path: Path) -> np.ndarray:
    """-> (n,) float32 at 16 kHz, peak at half of full scale."""
    samples, rate = sf.read(path, dtype="float32")
    if rate != SAMPLING_RATE:
        samples = soxr.resample(samples, rate, SAMPLING_RATE)
    return level(samples)


def level(samples: np.ndarray) -> np.ndarray:
    """The samples with their peak at half of full scale."""
    return samples * (0.5 / max(1e-6, float(np.abs(samples).max())))


def digit_clips(data: Path, held: bool) -> dict[str, dict[int, list[Path]]]:
    """Speaker -> digit -> clips, of the voices of a split."""
    voices: dict[str, dict[int, list[Path]]] = {}
    for row in read_manifest(data / "digits"):
        if (row["speaker"] == HELD_VOICE) == held:
            voices.setdefault(row["speaker"], {}).setdefault(row["digit"], []).append(row["path"])
    return voices


def lay_windows(data: Path, split: str, round_: int) -> Iterator[Window]:
    """Every order of a split once, in an order and with numbers of this round's own.

    Round 0 is clean and all its orders have numbers. Later rounds leave a number out now and then, play orders
    a little faster or slower, and add noise, so that the recogniser's mistakes vary.
    """
    rng = random.Random(f"{split} {round_}")
    held = split == "held"
    orders = [row for row in read_manifest(data / "orders") if is_held_order(row["path"].name) == held]
    voices = digit_clips(data, held)
    noise = load_clip(data / "kitchen.flac")
    rng.shuffle(orders)
    parts: list[np.ndarray] = []
    told: list[dict] = []

    def silence(low: float, high: float) -> np.ndarray:
        return np.zeros(int(rng.uniform(low, high) * SAMPLING_RATE), np.float32)

    def window() -> Window:
        samples = np.concatenate(parts)
        if round_ and rng.random() < 0.5:
            start = rng.randrange(len(noise))
            bed = np.resize(np.roll(noise, -start), len(samples))
            level = np.sqrt(np.mean(samples[np.abs(samples) > 0.01] ** 2) / np.mean(bed**2))
            samples = samples + bed * level * 10 ** (-rng.uniform(8, 25) / 20)
        return Window(np.clip(samples, -1, 1).astype(np.float32), list(told))

    for row in orders:
        number = None if round_ and rng.random() < 0.15 else rng.randrange(100)
        spoken = [silence(0.4, 1.2)]
        if number is not None:
            voice = voices[rng.choice(sorted(voices))]
            for digit in divmod(number, 10):
                spoken += [load_clip(rng.choice(voice[digit])), silence(0.05, 0.25)]
            spoken.append(silence(0.2, 0.4))
        order = load_clip(row["path"])
        spoken.append(soxr.resample(order, SAMPLING_RATE * rng.uniform(0.9, 1.12), SAMPLING_RATE) if round_ else order)
        if parts and sum(map(len, parts + spoken)) > WINDOW_SECONDS * SAMPLING_RATE:
            yield window()
            parts, told = [], []
        parts += spoken
        told.append({"number": number, "name": row["path"].name, "slots": row["slots"]})
    yield window()


class Recogniser:
    """The small model's own ears: what its memory will be made of. Windows are one long recording to it."""

    def __init__(self, folder: Path) -> None:
        model = SpeechModel.load(str(folder), "torch")
        recognizer = model.config.recognizer
        assert recognizer is not None
        self._encoder = model.config.encoder
        self._reader = WordReader(
            model.backend, load_recognizer_tokenizer(model.folder, recognizer.vocab_size), recognizer
        )
        self._earlier = Earlier()

    def write(self, windows: Sequence[Window]) -> list[str]:
        """The words of each window, read at once."""
        heard = [lone_window(window.samples, self._encoder) for window in windows]
        return [" ".join(word.text for word in words) for words in self._reader.read([(heard, self._earlier)])[0]]


def fill_cache(data: Path, model: Path, cache: Path, rounds: Sequence[tuple[str, int]]) -> None:
    """Write down the windows of these (split, round) pairs that the cache lacks."""
    done = read_cache(cache)
    cache.write_text("".join(json.dumps(line) + "\n" for line in done))
    seen = {(line["split"], line["round"], line["window"]) for line in done}
    recogniser = Recogniser(model)
    with open(cache, "a") as file:
        for split, round_ in rounds:
            missing = [(n, w) for n, w in enumerate(lay_windows(data, split, round_)) if (split, round_, n) not in seen]
            for at in tqdm(range(0, len(missing), LARGEST_GROUP), desc=f"{split} {round_}", unit="group"):
                numbers, windows = zip(*missing[at : at + LARGEST_GROUP], strict=True)
                for number, window, heard in zip(numbers, windows, recogniser.write(windows), strict=True):
                    line = {"split": split, "round": round_, "window": number, "orders": window.orders, "heard": heard}
                    file.write(json.dumps(line) + "\n")
                file.flush()


def main() -> None:
    """Hear the orders that the cache lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with orders/, digits/ and kitchen.flac")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint whose recogniser hears")
    parser.add_argument("--cache", type=Path, required=True, help="JSON lines to add to")
    parser.add_argument("--rounds", type=int, default=3, help="times that every training order is heard (3)")
    args = parser.parse_args()
    rounds = [("train", 0), ("held", 0), *(("train", number) for number in range(1, args.rounds))]
    fill_cache(args.data, args.model, args.cache, rounds)


if __name__ == "__main__":
    main()
