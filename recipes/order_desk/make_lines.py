"""`python -m recipes.order_desk.make_lines FOLDER`: order-desk recordings and the JSON lines that training and evaluation read.

Text-to-speech, and people's clips where a folder of them is given: recordings of a few numbered orders, each asked for
in every slot. The worked example of training on data of one's own: `python -m training --data FOLDER/train.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile as sf
from tqdm import tqdm

from recipes.order_desk.corpus import VALIDATION_VOICE, Clip, load_human, load_tts, split_human, synthesize
from recipes.order_desk.grammar import DIGIT_WORDS
from recipes.order_desk.recordings import build_recording
from speech_xl.config import SAMPLING_RATE
from speech_xl.errors import SpeechXLError


def spoken_lines(folder: Path, orders: Sequence[Clip], digits: Sequence[Clip]) -> Iterator[dict]:
    """A line with the words for every text-to-speech clip: what alignment learns from."""
    for clip in (*orders, *digits):
        if clip.words is not None:
            yield {"audio": _write(folder, clip.name, clip.samples), "text": " ".join(clip.words)}


def asked_lines(
    folder: Path, orders: Sequence[Clip], digits: Sequence[Clip], count: int, most: int, seed: int, spans: bool = False
) -> Iterator[dict]:
    """Lines of `count` recordings of up to `most` numbered orders, one for each question.

    With `spans` also the seconds in which the order is said, as the evaluation reads them.
    """
    rng = random.Random(seed)
    for i in range(count):
        recording = build_recording(orders, digits, rng.randint(1, most), rng.randint(0, 2), seed + i)
        audio = _write(folder, f"desk-{seed + i}", recording.samples)
        for question in recording.questions:
            where = {"start": round(question.start, 2), "end": round(question.end, 2)} if spans else {}
            yield {"audio": audio, "question": question.text, "answer": question.answer, "kind": question.slot} | where


def _write(folder: Path, name: str, samples: object) -> str:
    """Write FLAC unless it is there; returns the path from the JSON lines."""
    path = folder / "audio" / f"{name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        sf.write(path, samples, SAMPLING_RATE, subtype="PCM_16")
    return path.relative_to(folder).as_posix()


def write_lines(path: Path, lines: Iterator[dict]) -> None:
    """Write JSON lines, with a progress bar."""
    with path.open("w", encoding="utf-8") as file:
        for line in tqdm(lines, desc=path.name, unit="line"):
            file.write(json.dumps(line) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Make the recordings and their lines -> the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.order_desk.make_lines", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "folder", type=Path, help="spoken.jsonl, train.jsonl, valid.jsonl, judged.jsonl and audio/ go here"
    )
    parser.add_argument("--human-data", type=Path, help="folder with orders/ and digits/ spoken by people")
    parser.add_argument("--clips", type=int, default=2000, help="text-to-speech orders, and as many digits (2000)")
    parser.add_argument("--recordings", type=int, default=500, help="recordings to ask about (500)")
    parser.add_argument("--orders", type=int, default=5, help="numbered orders in one, at most (5)")
    chosen = parser.parse_args(arguments)
    try:
        synthesize(chosen.folder / "clips", chosen.clips, chosen.clips, seed=1)
        orders, digits = load_tts(chosen.folder / "clips")
        write_lines(chosen.folder / "spoken.jsonl", spoken_lines(chosen.folder, orders, digits))
        # A synthetic voice says one digit only, so all of them together count as one that says all ten.
        digits = [Clip(c.samples, c.words, None, c.digit, "tts", c.source, c.name) for c in digits]
        held_orders, held_digits = orders[::20], digits[: 4 * len(DIGIT_WORDS)]
        if chosen.human_data is not None:
            kept, held_orders, kept_digits, held_digits = split_human(
                *load_human(chosen.human_data, trim=False), VALIDATION_VOICE
            )
            orders, digits = [*orders, *kept], [*digits, *kept_digits]
        sizes = chosen.recordings, chosen.orders
        write_lines(chosen.folder / "train.jsonl", asked_lines(chosen.folder, orders, digits, *sizes, seed=1))
        held = chosen.folder, held_orders, held_digits, max(1, chosen.recordings // 20), chosen.orders, 10**6
        write_lines(chosen.folder / "valid.jsonl", asked_lines(*held))
        write_lines(chosen.folder / "judged.jsonl", asked_lines(*held, spans=True))
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
