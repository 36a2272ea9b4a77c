"""Clauses of a small grammar: who did what, where, when, how and why, told and asked in several ways.

A clause is "The baker" + "sold" + "a red lamp" + "at the market" + "on Friday". It knows the words that it was given,
not where they come from.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

_ORDER = ("how", "where", "when", "why")
_WAYS = {
    "where": ("Where {} {}?", "In what place {} {}?", "At which place {} {}?"),
    "when": ("When {} {}?", "At what time {} {}?", "When was it that {} {}?"),
    "how": ("How {} {}?", "In what way {} {}?"),
    "why": ("Why {} {}?", "For what reason {} {}?", "What was the reason that {} {}?"),
}
_FUTURE_WAYS = _WAYS | {
    "when": _WAYS["when"][:1],
    "why": (*_WAYS["why"][:2], "What is the reason that {} {}?"),
}
_STATEMENTS = ("When was it", "What was", "What is")  # after them the verb comes last: "that the baker sold"


def definite(phrase: str) -> str:
    """ "a red lamp" -> "the red lamp", as one asks for it."""
    return re.sub(r"^an? ", "the ", phrase)


def bare(phrase: str) -> str:
    """A place or time as an answer names it: "on Friday" -> "Friday", but "near the lake" stays."""
    if re.match(r"in \w+ days|in front of|at (home|dawn)", phrase):
        return phrase
    return re.sub(r"^(in|at|on) ", "", phrase)


@dataclass(frozen=True)
class Clause:
    """Who did what to what: a sentence and the questions about its parts."""

    kind: str  # of the thing: "object", "person", "food", ...
    verb: tuple[str, str, str]  # "sell", "sold", "sold"
    actor: str
    thing: str
    future: bool
    extras: dict[str, str]  # "where", "when", "how" and "why" -> phrase
    said: tuple[str, ...]  # which of them the sentence holds

    @property
    def done(self) -> str:
        """The verb in the sentence's tense."""
        return f"will {self.verb[0]}" if self.future else self.verb[1]

    @property
    def has_passive(self) -> bool:
        """Whether it can be said in the passive without guessing a number."""
        counted = re.match("the |a |an ", self.thing)  # else "was" or "were" is not known
        return bool(counted) and not self.future and self.kind not in ("food", "plant")

    def sentence(self, rng: random.Random) -> str:
        """One of the ways to say it."""
        base, past, participle = self.verb
        if self.future:
            core = f"{self.actor} {rng.choice(('will', 'is going to', 'plans to', 'wants to'))} {base} {self.thing}"
            if "and" in self.actor.split():
                core = f"{self.actor} will {base} {self.thing}"
        else:
            core = f"{self.actor} {past} {self.thing}"
        if self.has_passive and rng.random() < 0.2:
            core = f"{self.thing} was {participle} by {self.actor}"
        said = [k for k in _ORDER if k in self.said]
        if "when" in said and rng.random() < 0.35:
            rest = [self.extras[k] for k in said if k != "when"]
            return f"{self.extras['when']}, {' '.join([core, *rest])}."
        return f"{' '.join([core, *(self.extras[k] for k in said)])}."

    def hint(self, rng: random.Random) -> str:
        """One of the things said besides, to put into a question, or nothing."""
        said = [k for k in _ORDER if k in self.said]
        return f" {self.extras[rng.choice(said)]}" if rng.random() < 0.3 else ""

    def ask_who(self, hint: str = "") -> tuple[str, ...]:
        """Ways to ask for the actor; `hint` is a phrase that tells two like clauses apart."""
        thing = definite(self.thing)
        asked = tuple(f"{who} {self.done} {thing}?" for who in ("Who", "Which person"))
        asked += (f"Who {self.done} {thing}{hint}?",)
        return (*asked, f"By whom was {thing} {self.verb[2]}?") if self.has_passive else asked

    def ask_what(self, hint: str = "") -> tuple[str, ...]:
        """Ways to ask for the thing."""
        what, actor = "Whom" if self.kind == "person" else "What", definite(self.actor)
        does = f"{what} {'will' if self.future else 'did'} {actor} {self.verb[0]}"
        return f"{does}?", f"{does}{hint}?", f"{what} {'is' if self.future else 'was'} it that {actor} {self.done}?"

    def ask(self, word: str) -> tuple[str, ...]:
        """Questions for "where", "when", "how" or "why"."""
        actor = definite(self.actor)
        asked = f"{'will' if self.future else 'did'} {actor} {self.verb[0]}"
        return tuple(
            way.format(f"{actor} {self.done}" if way.startswith(_STATEMENTS) else asked, definite(self.thing))
            for way in (_FUTURE_WAYS if self.future else _WAYS)[word]
            if not way.startswith("At what time") or "o'clock" in self.extras["when"]
        )

    def answer(self, word: str) -> str:
        """The answer to where, when, how or why."""
        return bare(self.extras[word]) if word in ("where", "when") else self.extras[word]

    def unanswered(self, other_thing: str, other_actor: str, rng: random.Random) -> list[str]:
        """Questions that the sentence does not answer: what was left unsaid, another thing, another actor."""
        unsaid = [k for k in self.extras if k not in self.said and not (k == "where" and " in " in self.thing)]
        questions = [rng.choice(self.ask(k)) for k in unsaid]
        if other_thing != self.thing:
            other = replace(self, thing=other_thing)
            questions += [other.ask_who()[0], rng.choice(other.ask(rng.choice(self.said)))]
        if other_actor != self.actor:
            other = replace(self, actor=other_actor)
            questions += [rng.choice(other.ask(rng.choice(self.said))), other.ask_what()[0]]
        return questions
