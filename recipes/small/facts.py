"""Facts that somebody may say, with questions and answers made by rule, from the files of fact_lists.

Two kinds: templates written by hand ("{person} will bring the {food}."), and a small grammar that puts an actor, a
verb, a thing and places, times, reasons and ways together. Every {name} is drawn from a list of the files; an entry of
a list may hold {names} itself. A share of the templates and of people's names is held out for validation. It knows no
recording and no recogniser: sentences are as a speaker would write them down, numbers in words.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.small.clauses import Clause, bare

HELD_FRACTION = 0.1
HELD_NAMES = ("first", "last")  # the lists whose entries are split too
FACT_LISTS = Path(__file__).with_name("fact_lists")
TEMPLATE_SHARE = 0.8  # of the facts; the others come from the grammar
_SLOT = re.compile(r"{(\w+?)(\d*)}")


@dataclass(frozen=True)
class Asked:
    """One question in several wordings, and its answer."""

    wordings: tuple[str, ...]  # ways to ask for the same thing
    answer: str


@dataclass(frozen=True)
class Fact:
    """A sentence and what can be asked about it."""

    sentence: str  # without a capital that only its place gives it
    asked: tuple[Asked, ...]
    absent: tuple[str, ...]  # questions near the fact that it does not answer
    template: str


def is_held(text: str) -> bool:
    """Whether a template or a name belongs to validation; a hash, so that new ones move no others."""
    return zlib.crc32(text.encode()) < HELD_FRACTION * 2**32


def with_articles(text: str) -> str:
    """ "a umbrella" -> "an umbrella"."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU](?!ni|ne\b|uro))", r"\1n ", text)


def capitalised(sentence: str) -> str:
    """The sentence with a capital at its start."""
    return sentence[:1].upper() + sentence[1:]


class FactSource:
    """Draws facts of the training part or of the held-out part.

    Parameters
    ----------
    held : whether to draw held-out templates and names only. The grammar's verbs are split like templates.
    """

    def __init__(self, held: bool = False, folder: Path = FACT_LISTS) -> None:
        data: dict = {"fill": {}, "facts": [], "fillers": [], "grammar": {}}
        for path in sorted(folder.glob("*.json")):
            for name, part in json.loads(path.read_text()).items():
                if isinstance(part, list):
                    data[name] += part
                else:
                    data[name] |= part
        self.lists: dict[str, list[str]] = {
            name: [e for e in entries if is_held(e) == held] if name in HELD_NAMES else entries
            for name, entries in data["fill"].items()
        }
        self.templates = [t for t in data["facts"] if is_held(t["say"][0]) == held]
        self.fillers = [f for f in data["fillers"] if is_held(f) == held]
        self.grammar = data["grammar"]
        self.verbs = [
            (kind, *verb)
            for kind, verbs in self.grammar["verb"].items()
            for verb in verbs
            if is_held(kind + verb[0]) == held
        ]

    def expand(self, text: str, rng: random.Random) -> str:
        """Put a random entry in every slot, and in the slots of the entry."""
        return _SLOT.sub(lambda m: self._entry(m[1], rng), text)

    def _entry(self, name: str, rng: random.Random) -> str:
        entries = self.lists.get(name) or self.grammar[name]
        return self.expand(rng.choice(entries), rng)

    def fill(self, names: Sequence[str], rng: random.Random, taken: Sequence[str] = ()) -> dict[str, str]:
        """Slot name -> text; two slots of one list differ ({day} and {day2}), and none is in `taken`."""
        chosen: dict[str, str] = {}
        for name in names:
            kind = name.rstrip("0123456789")
            for _ in range(20):
                chosen[name] = self._entry(kind, rng)
                others = [chosen[n] for n in chosen if n != name]
                if chosen[name] not in others and chosen[name] not in taken:
                    break
        return chosen

    def from_template(self, template: dict, rng: random.Random) -> Fact:
        """A fact of that template, its places filled by chance."""
        say = rng.choice(template["say"])
        names = sorted({m[1] + m[2] for m in _SLOT.finditer(say)})
        values = self.fill(names, rng)

        def put(text: str, slots: dict[str, str] = values) -> str:
            return with_articles(text.format(**slots))

        asked = [Asked(tuple(put(w) for w in wordings), bare(put(answer))) for wordings, answer in template["ask"]]
        absent = []
        for wordings, _ in template["ask"]:
            wording = rng.choice(wordings)
            inside = sorted({m[1] + m[2] for m in _SLOT.finditer(wording)})
            if inside:  # the same question about another thing or person
                changed = rng.choice(inside)
                absent.append(put(wording, values | self.fill([changed], rng, taken=list(values.values()))))
        sentence = say[0].lower() + say[1:] if not say.startswith(("I ", "I'")) else say
        return Fact(put(sentence), tuple(asked), tuple(absent), template["say"][0])

    def from_grammar(self, rng: random.Random) -> Fact:
        """A clause of random words, told once and asked in several ways."""
        kind, *verb = rng.choice(self.verbs)
        actor = self._entry("actor", rng)
        pattern = rng.choice(self.grammar["thing"][kind])
        thing, other_thing = (with_articles(self.expand(pattern, rng)) for _ in range(2))
        future = rng.random() < 0.3
        lists = {"where": "where", "when": "soon" if future else "when", "how": "how", "why": "why"}
        extras = {k: with_articles(self._entry(name, rng)) for k, name in lists.items()}
        said = tuple(rng.sample(list(lists), rng.choice((1, 2, 2, 3))))
        clause = Clause(kind, tuple(verb), actor, thing, future, extras, said)
        sentence, hint = clause.sentence(rng), clause.hint(rng)
        asked = [Asked(clause.ask_who(hint), actor), Asked(clause.ask_what(hint), thing)]
        asked += [Asked(clause.ask(k), clause.answer(k)) for k in said]
        absent = clause.unanswered(other_thing, self._entry("actor", rng), rng)
        return Fact(sentence, tuple(asked), tuple(map(with_articles, absent)), f"{kind} {verb[0]}")

    def draw(self, rng: random.Random) -> Fact:
        """A fact of a template or of the grammar."""
        if rng.random() < TEMPLATE_SHARE:
            return self.from_template(rng.choice(self.templates), rng)
        return self.from_grammar(rng)
