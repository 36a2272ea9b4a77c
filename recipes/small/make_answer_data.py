"""The last stage's data: recordings of which something can be asked, mostly for what was said.

Every question for a fact stays, of the others one in three, so that "not mentioned" is not the likeliest answer; a sixth
of the recordings are order desks.

    python -m recipes.small.make_answer_data --text short.jsonl more.jsonl --orders orders.jsonl --output answers.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

FACT, LEAST_FACTS = "said", 2
KEPT = 0.35  # share of the other questions
ORDERS = 5  # recordings of facts for one order desk


def recordings(path: Path) -> Iterator[list[dict]]:
    """The lines with questions, recording by recording."""
    with open(path, encoding="utf-8") as file:
        for _, lines in itertools.groupby(map(json.loads, file), key=lambda line: line["heard"]):
            yield [line for line in lines if line.get("question")]


def main() -> None:
    """Write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files of make_text_data")
    parser.add_argument("--orders", type=Path, required=True, help="a file of make_order_data")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    chosen = []
    for path in arguments.text:
        for lines in recordings(path):
            kept = [line for line in lines if line["kind"] == FACT or rng.random() < KEPT]
            if sum(line["kind"] == FACT for line in kept) >= LEAST_FACTS:
                chosen.append(kept)
    orders = list(recordings(arguments.orders))
    rng.shuffle(orders)
    chosen += orders[: len(chosen) // ORDERS]
    rng.shuffle(chosen)
    arguments.output.write_text(
        "".join(json.dumps(line) + "\n" for lines in chosen for line in lines), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
