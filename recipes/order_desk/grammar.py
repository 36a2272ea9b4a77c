"""The language of the order desk: what an order can be, how it is said, and what can be asked about it.

An order is a dict of slots ("size" -> "twelve ounce"); a slot that is not spoken is absent. From slots this
file makes word sequences (one at random for text-to-speech, or every plausible one for labelling human
orders that have slots but no transcript). It knows no audio, no tokenizer and no model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import permutations

DRINKS = (
    "americano",
    "cappuccino",
    "coffee",
    "drip coffee",
    "espresso",
    "house coffee",
    "iced coffee",
    "iced mocha",
    "latte",
    "mocha",
)
SIZES = ("small", "medium", "large", "eight ounce", "twelve ounce", "sixteen ounce", "twenty ounce")
SHOTS = ("single shot", "double shot", "triple shot")
ROASTS = ("light roast", "medium roast", "dark roast")
MILKS = ("milk", "cream", "almond milk", "skim milk", "soy milk", "whole milk")
SWEETENERS = ("sugar", "brown sugar", "sweetener")
AMOUNTS = ("some", "a bit of", "a little bit of", "a lot of", "lots of")

BEFORE_DRINK = ("size", "numberOfShots", "roast")
AFTER_DRINK = ("milkAmount", "sugarAmount")
SLOTS = ("coffeeDrink", *BEFORE_DRINK, *AFTER_DRINK)

# The likely ones come first in people's mouths: they alone are tried when a human order is labelled, and
# text-to-speech draws them more often.
LIKELY_OPENINGS = (
    "can i get",
    "can i have",
    "i'd like",
    "i want",
    "i would like",
    "give me",
    "make me",
    "make",
    "brew",
    "brew me",
    "may i have",
    "could i get",
)
OPENINGS = (
    *LIKELY_OPENINGS,
    "could i have",
    "may i get",
    "can you make me",
    "can you make",
    "can you brew",
    "can you brew me",
    "could you make me",
    "could you make",
    "could you brew",
    "can you give me",
    "could you give me",
    "can you get me",
    "could you get me",
    "please make me",
    "please make",
    "please brew",
    "please give me",
    "please get me",
    "i'll have",
    "i will have",
    "i'll take",
    "i'd love",
    "i need",
    "get me",
    "let me get",
    "let me have",
    "prepare",
    "prepare me",
    "fix me",
    "i'd like to have",
    "i would like to have",
    "i'd like to get",
    "i would like to order",
    "i want to order",
    "i want to have",
    "can we get",
    "could we have",
    "we would like",
    "",
)

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PHRASES = (*OPENINGS, *DRINKS, *SIZES, *SHOTS, *ROASTS, *MILKS, *SWEETENERS, *AMOUNTS, "a an with and")
SPOKEN_WORDS = tuple(sorted({word for phrase in _PHRASES for word in phrase.split()} | set(DIGIT_WORDS)))

NOT_MENTIONED = "not mentioned"
# The first of each is the yardstick's own wording; the others keep the model from hanging on it.
QUESTIONS = {
    "coffeeDrink": (
        "What drink is order {n}?",
        "Which drink is order {n}?",
        "What is the drink in order {n}?",
        "What was ordered in order {n}?",
    ),
    "size": (
        "What size is order {n}?",
        "Which size is order {n}?",
        "How big is order {n}?",
        "What is the size of order {n}?",
    ),
    "numberOfShots": (
        "How many shots are in order {n}?",
        "How many shots does order {n} have?",
        "What is the number of shots in order {n}?",
    ),
    "roast": (
        "What roast is order {n}?",
        "Which roast is order {n}?",
        "What is the roast of order {n}?",
    ),
    "milkAmount": (
        "What milk is in order {n}?",
        "Which milk is in order {n}?",
        "What milk does order {n} have?",
        "How much milk and of what kind is in order {n}?",
    ),
    "sugarAmount": (
        "What sweetener is in order {n}?",
        "Which sweetener is in order {n}?",
        "What sugar is in order {n}?",
        "How is order {n} sweetened?",
    ),
}
TRANSCRIBE = ("Transcribe order {n}.", "What was said in order {n}?", "Write down order {n}.")


def sample_slots(rng: random.Random) -> dict[str, str]:
    """Random slots, each as often as in real orders: the drink always, every other one in about half."""

    def with_amount(things: Sequence[str]) -> str:
        thing = rng.choice(things)
        return thing if rng.random() < 0.6 else f"{rng.choice(AMOUNTS)} {thing}"

    slots = {"coffeeDrink": rng.choice(DRINKS)}
    if rng.random() < 0.49:
        slots["size"] = rng.choice(SIZES)
    if rng.random() < 0.55:
        slots["numberOfShots"] = rng.choice(SHOTS)
    if rng.random() < 0.50:
        slots["roast"] = rng.choice(ROASTS)
    if rng.random() < 0.48:
        slots["milkAmount"] = with_amount(MILKS)
    if rng.random() < 0.52:
        slots["sugarAmount"] = with_amount(SWEETENERS)
    return slots


def words_of(slots: Mapping[str, str], rng: random.Random) -> list[str]:
    """One random way to say `slots`, as a list of lower-case words."""
    before = [slots[name] for name in BEFORE_DRINK if name in slots]
    after = [slots[name] for name in AFTER_DRINK if name in slots]
    rng.shuffle(before)
    rng.shuffle(after)
    opening = rng.choice(LIKELY_OPENINGS if rng.random() < 0.5 else OPENINGS)
    return list(_sentence(opening, before, slots["coffeeDrink"], after, article=rng.random() < 0.9))


def candidates(slots: Mapping[str, str], openings: Sequence[str] = LIKELY_OPENINGS) -> list[tuple[str, ...]]:
    """Every way to say `slots` with one of `openings`: at most 24 x openings word sequences."""
    before = [slots[name] for name in BEFORE_DRINK if name in slots]
    after = [slots[name] for name in AFTER_DRINK if name in slots]
    return [
        _sentence(opening, first, slots["coffeeDrink"], last, article)
        for opening in openings
        for first in permutations(before)
        for last in permutations(after)
        for article in (True, False)
    ]


def _sentence(opening: str, before: Sequence[str], drink: str, after: Sequence[str], article: bool) -> tuple[str, ...]:
    order = [*before, drink]
    if article:
        # "an" before a vowel's sound; the grammar has no word where letter and sound disagree.
        order.insert(0, "an" if order[0][0] in "aeiou" else "a")
    tail = ["with", " and ".join(after)] if after else []
    return tuple(" ".join([opening, *order, *tail]).split())
