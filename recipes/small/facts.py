"""Facts that somebody may say, with questions and answers made by rule, from talk_facts.json.

Two kinds: templates written by hand ("{person} will bring the {food}."), and a small grammar that puts an actor, a
verb, a thing and places, times, reasons and ways together. Every {name} is drawn from a list of the file; an entry of
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

HELD_FRACTION = 0.1
HELD_NAMES = ("first", "last")  # the lists whose entries are split too
FACTS_FILE = Path(__file__).with_name("talk_facts.json")
_SLOT = re.compile(r"{(\w+?)(\d*)}")


@dataclass(frozen=True)
class Asked:
    wordings: tuple[str, ...]  # ways to ask for the same thing
    answer: str


@dataclass(frozen=True)
class Fact:
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
    return sentence[:1].upper() + sentence[1:]


def bare(phrase: str) -> str:
    """A place or time as an answer names it: "on Friday" -> "Friday", but "near the lake" stays."""
    if re.match(r"in \w+ days|in front of|at (home|dawn)", phrase):
        return phrase
    return re.sub(r"^(in|at|on) ", "", phrase)


class FactSource:
    """Draws facts of the training part or of the held-out part.

    Parameters
    ----------
    held : whether to draw held-out templates and names only. The grammar's verbs are split like templates.
    """

    def __init__(self, held: bool = False, path: Path = FACTS_FILE) -> None:
        data = json.loads(path.read_text())
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
        say = rng.choice(template["say"])
        names = sorted({m[1] + m[2] for m in _SLOT.finditer(say)})
        values = self.fill(names, rng)

        def put(text: str, slots: dict[str, str] = values) -> str:
            return with_articles(text.format(**slots))

        asked = [Asked(tuple(put(w) for w in wordings), put(answer)) for wordings, answer in template["ask"]]
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
        """ "The baker" + "sold" + "a red lamp" + "at the market" + "on Friday", told and asked in several ways."""
        kind, base, past, participle = rng.choice(self.verbs)
        actor = self._entry("actor", rng)
        pattern = rng.choice(self.grammar["thing"][kind])
        thing = with_articles(self.expand(pattern, rng))
        other = with_articles(self.expand(pattern, rng))
        future = rng.random() < 0.3
        lists = {"where": "where", "when": "soon" if future else "when", "how": "how", "why": "why"}
        extras = {k: with_articles(self._entry(name, rng)) for k, name in lists.items()}
        said = rng.sample(["where", "when", "how", "why"], rng.choice((1, 2, 2, 3)))
        said.sort(key=["how", "where", "when", "why"].index)
        order = said[:]
        tail = " ".join(extras[k] for k in order)
        the_thing = re.sub(r"^an? ", "the ", thing)
        the_actor = re.sub(r"^an? ", "the ", actor)
        the_other = re.sub(r"^an? ", "the ", other)
        if future:
            core = f"{actor} {rng.choice(('will', 'is going to', 'plans to', 'wants to'))} {base} {thing}"
            if "and" in actor.split():
                core = f"{actor} will {base} {thing}"
        else:
            core = f"{actor} {past} {thing}"
        one = re.match("the |a |an ", thing)
        if not future and one and kind not in ("food", "plant") and rng.random() < 0.2:
            core = f"{thing} was {participle} by {actor}"
        sentence = f"{core} {tail}."
        if "when" in order and rng.random() < 0.35:
            rest = " ".join(extras[k] for k in order if k != "when")
            sentence = f"{extras['when']}, {core}{' ' + rest if rest else ''}."

        does = f"will {the_actor} {base}" if future else f"did {the_actor} {base}"
        done = f"will {base}" if future else past
        hint = f" {extras[rng.choice(order)]}" if rng.random() < 0.3 else ""
        who = (f"Who {done} {the_thing}?", f"Which person {done} {the_thing}?", f"Who {done} {the_thing}{hint}?")
        if one and not future and kind not in ("food", "plant"):
            who += (f"By whom was {the_thing} {participle}?",)
        asker, is_it = "Whom" if kind == "person" else "What", "is" if future else "was"
        whats = (f"{asker} {does}?", f"{asker} {does}{hint}?", f"{asker} {is_it} it that {the_actor} {done}?")
        questions = [
            Asked(who, actor),
            Asked(whats, thing),
        ]
        ways = {
            "where": ("Where {} {}?", "In what place {} {}?", "At which place {} {}?"),
            "when": ("When {} {}?", "At what time {} {}?", "When was it that {} {}?"),
            "how": ("How {} {}?", "In what way {} {}?"),
            "why": ("Why {} {}?", "For what reason {} {}?", "What was the reason that {} {}?"),
        }
        if future:
            ways["when"] = ways["when"][:1]
            ways["why"] = (*ways["why"][:2], "What is the reason that {} {}?")
        plain = ("When was it", "What was", "What is")

        def ask(word: str, subject: str, thing: str) -> tuple[str, ...]:
            asked = f"will {subject} {base}" if future else f"did {subject} {base}"
            wordings = (w for w in ways[word] if not w.startswith("At what time") or "o'clock" in extras["when"])
            return tuple(w.format(f"{subject} {done}" if w.startswith(plain) else asked, thing) for w in wordings)

        answers = {k: bare(extras[k]) if k in ("where", "when") else extras[k] for k in said}
        questions += [Asked(ask(k, the_actor, the_thing), answers[k]) for k in said]
        unsaid = [k for k in extras if k not in said and not (k == "where" and " in " in thing)]
        absent = [rng.choice(ask(k, the_actor, the_thing)) for k in unsaid]
        if other != thing:
            absent.append(f"Who {done} {the_other}?")
            absent.append(rng.choice(ask(rng.choice(said), the_actor, the_other)))
        stranger = self._entry("actor", rng)
        if stranger != actor:
            stranger = re.sub(r"^an? ", "the ", stranger)
            absent.append(rng.choice(ask(rng.choice(said), stranger, the_thing)))
            absent.append(f"{asker} {'will' if future else 'did'} {stranger} {base}?")
        return Fact(sentence, tuple(questions), tuple(map(with_articles, absent)), f"{kind} {base}")

    def draw(self, rng: random.Random) -> Fact:
        if rng.random() < 0.6:
            return self.from_template(rng.choice(self.templates), rng)
        return self.from_grammar(rng)
