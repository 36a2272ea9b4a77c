"""Transcribed windows for the recogniser: spoken numbers before orders and sentences, and running speech.

Whisper base drops a number that is spoken alone before a sentence, or hears another one. The windows teach it to write
what it hears, numbers as words: human orders and digits as an order desk has them, numbers before sentences of readers
and learners, and, so that nothing is unlearnt, prose and spoken facts. An order has slots but no transcript: of all
ways to say the slots, the one nearest to what the recogniser wrote in `hear_orders`' cache is taken.

Writes hearing.jsonl, {"audio", "text"} a line, and FLAC files of one window each in hearing_windows beside it.

    python -m recipes.small.make_hearing_data --data DATA --cache heard_orders.jsonl --output hearing.jsonl
    python -m recipes.small.make_hearing_data --data DATA --cache heard_orders.jsonl --output held.jsonl --held
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile as sf
from rapidfuzz import fuzz
from tqdm import tqdm

from recipes.order_desk.grammar import OPENINGS, candidates
from recipes.order_desk.tts import sample_voice, speak
from recipes.small.facts import FactSource, capitalised
from recipes.small.hear_orders import (
    SPLITS,
    WINDOW_SECONDS,
    Window,
    digit_clips,
    lay_windows,
    level,
    load_clip,
    read_manifest,
)
from recipes.small.order_cache import read_cache
from speech_xl.config import SAMPLING_RATE
from speech_xl.spoken_numbers import FIGURES, spoken

LEAST_LIKENESS = 72.0  # of a transcript and a way to say an order, in percent; below it the order was not heard


def plain(text: str) -> str:
    """Lower case, letters, figures and apostrophes only."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split())


@lru_cache(maxsize=2000)
def likeliest(slots: tuple[tuple[str, str], ...], heard: str) -> tuple[str, float]:
    """The way to say an order that stands most nearly in what was heard, and how near, in percent."""
    ways = [" ".join(words) for words in candidates(dict(slots), [opening for opening in OPENINGS if opening])]
    # Shorter ways are found more easily in a longer text: the longer one of two that fit alike says more.
    scored = ((fuzz.partial_ratio(way, heard) + 0.4 * len(way.split()), way) for way in ways)
    score, way = max(scored)
    return way, score


def transcripts(cache: Path) -> dict[str, str]:
    """Order's file name -> the words that were said, for all orders that some window of the cache holds."""
    best: dict[str, tuple[float, str]] = {}
    for line in tqdm(read_cache(cache), desc="orders' words", unit="window"):
        heard = re.sub(
            r"\b(8|12|16|20)\b",
            lambda m: spoken(m[1]),
            plain(line["heard"]),
        )
        for order in line["orders"]:
            way, score = likeliest(tuple(sorted(order["slots"].items())), heard)
            if score >= LEAST_LIKENESS and score > best.get(order["name"], (0.0, ""))[0]:
                best[order["name"]] = (score, way)
    return {name: way for name, (_, way) in best.items()}


def sentence(words: str) -> str:
    """Words as a sentence: "can i get a latte" -> "Can I get a latte?"."""
    words = re.sub(r"\bi\b", "I", words)
    words = re.sub(r"\bi('\w+)", r"I\1", words)
    return words[:1].upper() + words[1:] + ("?" if re.match(r"(can|could|may)\b", words) else ".")


def number_words(number: int) -> str:
    """A number below a hundred said figure by figure."""
    a, b = divmod(number, 10)
    return f"{FIGURES[a].capitalize()} {FIGURES[b]}."


def of_orders(windows: Sequence[Window], said: dict[str, str]) -> Iterator[tuple[np.ndarray, str]]:
    """Windows of which every order's words are known."""
    for window in windows:
        if all(order["name"] in said for order in window.orders):
            parts = []
            for order in window.orders:
                if order["number"] is not None:
                    parts.append(number_words(order["number"]))
                parts.append(sentence(said[order["name"]]))
            yield window.samples, " ".join(parts)


class Voices:
    """Spoken digits: human ones of a split, and, one number in two, text-to-speech."""

    def __init__(self, data: Path, held: bool) -> None:
        self._human = digit_clips(data, held)

    def say(self, number: int, rng: random.Random) -> list[np.ndarray]:
        """The two figures of a number and the pause between them, 16 kHz float32, by one voice."""
        digits = divmod(number, 10)
        if rng.random() < 0.5:
            person = self._human[rng.choice(sorted(self._human))]
            clips = [load_clip(rng.choice(person[digit])) for digit in digits]
        else:
            voice = sample_voice(rng)
            clips = [level(speak(FIGURES[digit], voice)) for digit in digits]
        return [clips[0], pause(rng, 0.05, 0.25), clips[1]]


def pause(rng: random.Random, low: float, high: float) -> np.ndarray:
    """Silence of `low` to `high` seconds."""
    return np.zeros(int(rng.uniform(low, high) * SAMPLING_RATE), np.float32)


def read_speech(data: Path, held: bool) -> dict[str, list[dict]]:
    """Human speech with transcripts by corpus; a tenth of the readings, and of the learners, is held out."""
    rows: dict[str, list[dict]] = {"ljspeech": [], "speechocean762": []}
    for n, row in enumerate(read_manifest(data / "speech")):
        corpus = row["audio"].split("/")[0]
        is_held = (n // 20) % 10 == 9 if corpus == "ljspeech" else row["speaker"].endswith("7")
        if is_held == held:
            text = row["text"].strip()
            rows[corpus].append(row | {"text": sentence(text.lower()) if text.isupper() else text})
    return rows


def laid(pieces: Iterator[tuple[list[np.ndarray], str]]) -> Iterator[tuple[np.ndarray, str]]:
    """Spoken pieces, one after another in windows."""
    parts: list[np.ndarray] = []
    texts: list[str] = []
    for sounds, text in pieces:
        if parts and sum(map(len, parts + sounds)) > WINDOW_SECONDS * SAMPLING_RATE:
            yield np.concatenate(parts), " ".join(texts)
            parts, texts = [], []
        parts, texts = parts + sounds, [*texts, text]


def numbered(rows: dict[str, list[dict]], voices: Voices, rng: random.Random) -> Iterator[tuple[list[np.ndarray], str]]:
    """A number and a short sentence, again and again."""
    short = [row for row in rows["ljspeech"] if row["seconds"] < 6]
    while True:
        row = rng.choice(short if rng.random() < 0.5 else rows["speechocean762"])
        number = rng.randrange(100)
        sounds = [pause(rng, 0.3, 1.0), *voices.say(number, rng), pause(rng, 0.2, 0.5), load_clip(row["path"])]
        yield sounds, f"{number_words(number)} {row['text']}"


def running(
    rows: dict[str, list[dict]], facts: FactSource, rng: random.Random
) -> Iterator[tuple[list[np.ndarray], str]]:
    """Prose that one reader reads on, and facts that many voices say."""
    at = rng.randrange(len(rows["ljspeech"]))
    while True:
        if rng.random() < 0.6:
            row = rows["ljspeech"][at % len(rows["ljspeech"])]
            at += 1
            yield [load_clip(row["path"]), pause(rng, 0.05, 0.3)], row["text"]
        else:
            voice = sample_voice(rng)
            for _ in range(rng.randint(1, 3)):
                text = capitalised(facts.draw(rng).sentence)
                yield [level(speak(text, voice)), pause(rng, 0.2, 0.8)], text


def windows(
    data: Path, cache: Path, held: bool, rounds: Sequence[int], counts: tuple[int, int]
) -> Iterator[tuple[np.ndarray, str]]:
    """All windows of a split: order desks of some rounds, then numbers before sentences and running speech."""
    rng = random.Random(f"hearing {held}")
    said = transcripts(cache)
    for round_ in rounds:
        yield from of_orders(list(lay_windows(data, SPLITS[held], round_)), said)
    rows, voices = read_speech(data, held), Voices(data, held)
    for kind, count in zip((numbered(rows, voices, rng), running(rows, FactSource(held), rng)), counts, strict=True):
        yield from itertools.islice(laid(kind), count)


def main() -> None:
    """Write the lines and their recordings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with orders/, digits/, speech/ and kitchen.flac"
    )
    parser.add_argument("--cache", type=Path, required=True, help="JSON lines that hear_orders wrote")
    parser.add_argument(
        "--output", type=Path, required=True, help="JSON lines to write; FLAC files in a folder beside it"
    )
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2], help="of the order desk (1 2)")
    parser.add_argument(
        "--counts", type=int, nargs=2, default=[110, 110], help="windows with numbers, of running speech"
    )
    parser.add_argument("--held", action="store_true", help="people that are never trained on: for validation")
    args = parser.parse_args()
    folder = args.output.with_name(f"{args.output.name.split('.')[0]}_windows")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n, (samples, text) in enumerate(tqdm(windows(args.data, args.cache, args.held, args.rounds, args.counts))):
        path = folder / f"{n:05}.flac"
        sf.write(path, samples, SAMPLING_RATE, subtype="PCM_16")
        lines.append(json.dumps({"audio": str(path.relative_to(args.output.parent)), "text": text}) + "\n")
    args.output.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
