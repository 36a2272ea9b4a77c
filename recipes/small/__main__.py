"""Makes the small model from its base parts, one resumable command.

    python -m recipes.small --data DATA --work runs/small

DATA holds the human recordings: orders/, digits/ and speech/, each with a manifest.jsonl, and kitchen.flac. The base
parts are fetched, data are written, the stages of recognition.json, text.json, orders.json, answers.json, more.json,
recall.json and passages.json are trained, and what was learnt is stored by reference in WORK/small. Every step is skipped
where its result is there; training goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from speech_xl.base_parts import parts_from
from speech_xl.errors import SpeechXLError
from speech_xl.fetching import cache_folder, fetch_part

HERE = Path(__file__).parent
RANK = "140"  # of the stored differences, in 8 bits: what fits the size that a repository may well hold
SPOKEN, HEARD = ("--answers", "spoken"), ("--answers", "heard")  # "fifteen", or "15"; recall copies what was heard
# (file, its seed, recordings, shortest and longest in words, further options)
TEXTS = (
    ("short.jsonl", 11, 3600, 25, 85, SPOKEN),
    ("long.jsonl", 12, 900, 85, 180, SPOKEN),
    ("held.jsonl", 13, 60, 30, 130, ("--held", *SPOKEN)),
    ("more.jsonl", 14, 1500, 40, 180, SPOKEN),
    ("facts.jsonl", 31, 6000, 25, 85, SPOKEN),
    ("stories.jsonl", 32, 2500, 85, 170, SPOKEN),
    ("brief.jsonl", 51, 1200, 25, 85, HEARD),
    ("middling.jsonl", 52, 2500, 85, 170, HEARD),
    ("talks.jsonl", 53, 3000, 110, 210, HEARD),
    ("brief_passages.jsonl", 61, 900, 8, 28, HEARD),
)


def run(done: Path, module: str, *arguments: object) -> None:
    """`python -m module arguments`, unless its result `done` is there. A file gets its name once it is whole."""
    if done.exists():
        return
    partial = done.with_name(done.name + ".partial") if done.suffix else done
    command = [sys.executable, "-m", module, *(str(partial if a == done else a) for a in arguments)]
    print("$", " ".join(command[1:]), flush=True)
    result = subprocess.run(command)
    if result.returncode:
        sys.exit(result.returncode)
    if partial.exists():
        partial.rename(done)


def train(work: Path, name: str, model: Path, data: Sequence[Path], held: Path) -> Path:
    """One recipe's stages; the folder of the trained checkpoint."""
    output = work / name
    run(
        output / "model",
        "training",
        "--model",
        model,
        "--data",
        *data,
        "--validation",
        held,
        "--output",
        output,
        "--recipe",
        HERE / f"{name}.json",
    )
    return output / "model"


def train_recogniser(data: Path, work: Path, base: Path) -> Path:
    """The checkpoint whose recogniser writes spoken numbers; what the base one hears tells how the orders were said."""
    cache, lines, held = work / "first_heard_orders.jsonl", work / "hearing.jsonl", work / "held_hearing.jsonl"
    run(lines, "recipes.small.hear_orders", "--data", data, "--model", base, "--cache", cache, "--rounds", 1)
    run(lines, "recipes.small.make_hearing_data", "--data", data, "--cache", cache, "--output", lines)
    run(
        held,
        "recipes.small.make_hearing_data",
        "--data",
        data,
        "--cache",
        cache,
        "--output",
        held,
        "--held",
        "--rounds",
        1,
        "--counts",
        6,
        10,
    )
    return train(work, "recognition", base, [lines], held)


def make(data: Path, work: Path) -> Path:
    """Every step in order -> the by-reference checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    parts = parts_from(json.loads((HERE / "parts.json").read_text(encoding="utf-8"))["parts"])
    whisper, decoder = (fetch_part(part, HERE, cache_folder()) for part in parts)
    base = work / "base"
    run(
        base,
        "converters",
        "--hf-path",
        whisper,
        "--decoder",
        decoder / parts[1].files[0].name,
        "--recognizer",
        "--with-sst",
        "--settings",
        HERE / "settings.json",
        "--mlx-path",
        base,
    )
    for name, seed, count, shortest, longest, options in TEXTS:
        run(
            work / name,
            "recipes.small.make_text_data",
            "--output",
            work / name,
            "--count",
            count,
            "--seed",
            seed,
            "--shortest",
            shortest,
            "--longest",
            longest,
            *options,
        )
    ears = train_recogniser(data, work, base)
    cache, orders, held = work / "heard_orders.jsonl", work / "orders.jsonl", work / "held_orders.jsonl"
    run(orders, "recipes.small.hear_orders", "--data", data, "--model", ears, "--cache", cache)
    run(orders, "recipes.small.make_order_data", "--cache", cache, "--output", orders)
    run(held, "recipes.small.make_order_data", "--cache", cache, "--output", held, "--count", 60, "--held")
    text = train(work, "text", ears, [work / "short.jsonl", work / "long.jsonl"], work / "held.jsonl")
    desk = train(work, "orders", text, [work / "more.jsonl", orders], held)
    answers = work / "answers.jsonl"
    run(
        answers,
        "recipes.small.make_answer_data",
        "--text",
        work / "short.jsonl",
        work / "more.jsonl",
        "--orders",
        orders,
        "--output",
        answers,
    )
    answering = train(work, "answers", desk, [answers], held)
    more = train(work, "more", answering, [work / "facts.jsonl", work / "stories.jsonl", orders], held)
    talks = [work / "brief.jsonl", work / "middling.jsonl", work / "talks.jsonl"]
    recalling = train(work, "recall", more, [*talks, orders], held)
    passages = work / "passages.jsonl"
    run(
        passages,
        "recipes.small.make_order_data",
        "--cache",
        cache,
        "--output",
        passages,
        "--count",
        3500,
        "--seed",
        2,
        "--passages",
    )
    whole = train(work, "passages", recalling, [*talks, work / "brief_passages.jsonl", passages], held)
    small = work / "small"
    run(
        small, "converters", "--hf-path", whole, "--export-delta", small, "--parts", HERE / "parts.json", "--rank", RANK
    )
    return small


def main() -> int:
    """Make the model, or go on where that was stopped -> the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.small", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with orders/, digits/ and kitchen.flac")
    parser.add_argument("--work", type=Path, default=Path("runs/small"), help="where everything is made (runs/small)")
    arguments = parser.parse_args()
    try:
        print(make(arguments.data, arguments.work))
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
