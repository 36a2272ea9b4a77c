"""Order-desk recordings in text: what Whisper wrote of human orders, with questions about their slots.

Reads the cache that `hear_orders` filled, cuts its windows into numbered orders where the number can be found in the
transcript, and lays them out anew: other numbers in the same spelling ("4, 7", "Four seven.", "4.7"), other orders
together, and un-numbered orders between them. Some recordings are whole windows, one after another, as they were heard.
An order whose number was not heard is never asked for. Lines as in `make_text_data`; "kind" is the slot's name,
"absent" for a slot or an order that was not spoken, "quote" for an order's words.

With --passages a recording is a few orders whose first and last may be cut anywhere, as the intervals beside a number are,
and questions spell numbers as they were heard: what the model reads once it has found where a number was said.

    python -m recipes.small.make_order_data --cache heard_orders.jsonl --output train_orders.jsonl --count 1500
    python -m recipes.small.make_order_data --cache heard_orders.jsonl --output passages.jsonl --count 1500 --passages
    python -m recipes.small.make_order_data --cache heard_orders.jsonl --output valid_orders.jsonl --count 60 --held
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.small.order_cache import read_cache
from speech_xl.spoken_numbers import FIGURES, as_heard

NOT_MENTIONED = "not mentioned"
# The first of each is the order desk's own wording; the others keep the model from hanging on it.
QUESTIONS = {
    "coffeeDrink": ("What drink is order {n}?", "Which drink is order {n}?", "What was ordered in order {n}?"),
    "size": ("What size is order {n}?", "How big is order {n}?", "What is the size of order {n}?"),
    "numberOfShots": ("How many shots are in order {n}?", "How many shots does order {n} have?"),
    "roast": ("What roast is order {n}?", "Which roast is order {n}?", "What is the roast of order {n}?"),
    "milkAmount": ("What milk is in order {n}?", "Which milk is in order {n}?", "What milk does order {n} have?"),
    "sugarAmount": ("What sweetener is in order {n}?", "What sugar is in order {n}?", "How is order {n} sweetened?"),
}
ANNOUNCED = 0.8  # share of passages that are one order
PASSAGE = 70  # words of three intervals, roughly
_QUOTE = ("Transcribe order {n}.", "What was said in order {n}?", "Quote order {n}.")


@dataclass(frozen=True)
class HeardOrder:
    """One order as it was heard; the text has {a} and {b} where the digits of its number stand."""

    text: str
    slots: dict[str, str]
    in_words: bool  # whether the digits were written as words
    following: int  # un-numbered orders that the text goes on with


def find_number(number: int, text: str, start: int) -> re.Match | None:
    """Where a number's two digits stand in a transcript from `start` on, however they are spelled."""
    a, b = divmod(number, 10)
    digits = re.compile(rf"(?<![\w.,-])({a}|{FIGURES[a]})(\W{{0,4}})({b}|{FIGURES[b]})(?![\w])", re.IGNORECASE)
    return digits.search(text, start)


def cut_window(line: dict) -> dict[int, HeardOrder]:
    """A window's orders whose numbers were heard, number -> order.

    Words before the first number are left out; an order whose number was not heard stays at the end of the one before.
    """
    text, found, at = line["heard"], [], 0
    for place, order in enumerate(line["orders"]):
        if order["number"] is None or (match := find_number(order["number"], text, at)) is None:
            continue
        if match[1].isdigit() == match[3].isdigit():
            found.append((place, match))
        at = match.end()
    heard = {}
    ends = [*[(place, match.start()) for place, match in found], (len(line["orders"]), len(text))]
    for (place, match), (after, end) in zip(found, ends[1:], strict=True):
        body = text[match.end() : end]
        if len(body.split()) >= 4:  # else the order itself was not heard
            order = line["orders"][place]
            template = f"{{a}}{match[2]}{{b}}{body}".strip()
            heard[order["number"]] = HeardOrder(template, order["slots"], not match[1].isdigit(), after - place - 1)
    return heard


def tell(order: HeardOrder, number: int) -> str:
    """The order's words with another number, spelled as before."""
    a, b = (FIGURES[d] if order.in_words else str(d) for d in divmod(number, 10))
    return order.text.replace("{a}", a.capitalize(), 1).replace("{b}", b, 1)


def ask(asked: dict[int, dict[str, str]], told: dict[int, str], count: int, rng: random.Random) -> list[dict]:
    """Questions about numbered orders: two thirds about slots that they name.

    `asked`: number -> slots; `told`: number -> the order's words, for numbers that were spoken but not heard "".
    """
    lines: list[dict] = []
    for _ in range(10 * count):
        if len(lines) == count or not asked:
            break
        number = rng.choice(sorted(asked))
        slots = asked[number]
        if rng.random() < 0.04:
            number, slots = rng.choice([n for n in range(100) if n not in told]), {}
        if told.get(number) and rng.random() < 0.05:
            question, answer, kind = rng.choice(_QUOTE).format(n=number), told[number].strip().rstrip("."), "quote"
        else:
            named = [k for k in QUESTIONS if k in slots]
            others = [k for k in QUESTIONS if k not in slots]
            slot = rng.choice(named if named and (rng.random() < 0.67 or not others) else others)
            wording = QUESTIONS[slot][0] if rng.random() < 0.6 else rng.choice(QUESTIONS[slot])
            question, answer = wording.format(n=number), slots.get(slot, NOT_MENTIONED)
            kind = slot if slot in slots else "absent"
        if all(line["question"] != question for line in lines):
            lines.append({"question": question, "answer": answer, "kind": kind})
    return lines


def from_orders(orders: Sequence[HeardOrder], plain: Sequence[str], rng: random.Random) -> tuple[str, dict, dict]:
    """3 to 12 orders with new numbers -> (heard, number -> slots, number -> words)."""
    chosen = rng.sample(list(orders), min(len(orders), rng.randint(3, 12)))
    numbers = rng.sample(range(100), len(chosen))
    texts, asked, told = [], {}, {}
    for number, order in zip(numbers, chosen, strict=True):
        text = tell(order, number)
        texts.append(text)
        told[number] = text
        asked[number] = order.slots
        if plain and rng.random() < 0.1:
            texts.append(rng.choice(plain))
    return " ".join(texts), asked, told


def from_passage(orders: Sequence[HeardOrder], plain: Sequence[str], rng: random.Random) -> tuple[str, dict, dict]:
    """Two to five orders with new numbers, the outer ones perhaps cut -> as `from_orders`; only whole ones are asked for.

    Mostly a single order: what its number announces is all that is read.
    """
    if rng.random() < ANNOUNCED:
        alone = [order for order in orders if not order.following]
        number, order = rng.randrange(100), rng.choice(alone or list(orders))
        text = tell(order, number)
        return text, {number: order.slots}, {number: text}
    chosen = rng.sample(list(orders), min(len(orders), 7))
    numbers = rng.sample(range(100), len(chosen))
    texts: list[list[str]] = []
    whole: list[tuple[int, HeardOrder] | None] = []
    for number, order in zip(numbers, chosen, strict=True):
        texts.append(tell(order, number).split())
        whole.append((number, order))
        if rng.random() < 0.15:
            texts.append(rng.choice(plain).split() if plain else [])
            whole.append(None)
    start = rng.randrange(len(texts[0]) + 1) if rng.random() < 0.8 else 0
    end = start + rng.randint(PASSAGE // 2, PASSAGE)
    asked, told, at = {}, {}, 0
    for words, numbered in zip(texts, whole, strict=True):
        if numbered is not None and start <= at and at + len(words) <= end:
            asked[numbered[0]], told[numbered[0]] = numbered[1].slots, " ".join(words)
        at += len(words)
    heard = " ".join([word for words in texts for word in words][start:end])
    return heard, asked, told | {n: "" for n in numbers if n not in told}


def from_windows(windows: Sequence[dict], rng: random.Random) -> tuple[str, dict, dict]:
    """Whole windows as they were heard, unheard numbers included -> as `from_orders`."""
    texts, asked, told = [], {}, {}
    spoken: set[int] = set()
    for line in rng.sample(list(windows), min(len(windows), rng.randint(2, 5))):
        numbers = {order["number"] for order in line["orders"]} - {None}
        if numbers & spoken:
            continue
        spoken |= numbers
        texts.append(line["heard"])
        for number, order in cut_window(line).items():
            asked[number], told[number] = order.slots, tell(order, number)
    return " ".join(texts), asked, told | {n: "" for n in spoken if n not in told}


def make_recordings(
    lines: Sequence[dict], count: int, seed: int, passages: bool = False, questions: int = 10
) -> Iterator[list[dict]]:
    """Recordings, each as its lines, out of a split's windows; a recording depends on (seed, its number) alone."""
    orders = [order for line in lines for order in cut_window(line).values()]
    if not orders:
        raise SystemExit("No number was heard in any window of the cache: hear more rounds with hear_orders.")
    plain = [re.sub(r"^\W+", "", order.text.split("{b}", 1)[1]) for order in orders if not order.following]
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        asked_lines: list[dict] = []
        while not asked_lines:  # windows may hold no number that was heard
            if passages:
                heard, asked, told = from_passage(orders, plain, rng)
            else:
                heard, asked, told = from_windows(lines, rng) if rng.random() < 0.3 else from_orders(orders, plain, rng)
            asked_lines = ask(asked, told, questions, rng)
        if passages:
            asked_lines = [line | {"question": as_heard(line["question"], heard)} for line in asked_lines]
        yield [{"heard": heard, **line} for line in asked_lines]


def main() -> None:
    """Write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="JSON lines that hear_orders wrote")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")
    parser.add_argument("--count", type=int, default=1500, help="recordings (1500)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--passages", action="store_true", help="a few orders, as the intervals beside a number hold them"
    )
    parser.add_argument("--held", action="store_true", help="people that are never trained on: for validation")
    args = parser.parse_args()
    lines = [line for line in read_cache(args.cache) if (line["split"] == "held") == args.held]
    with open(args.output, "w") as file:
        for recording in make_recordings(lines, args.count, args.seed, args.passages):
            file.writelines(json.dumps(line) + "\n" for line in recording)


if __name__ == "__main__":
    main()
