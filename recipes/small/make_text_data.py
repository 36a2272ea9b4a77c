"""Training and validation data of the small model in text: what a recogniser writes of a recording, and questions.

A recording is facts, remarks and running text, 30 to 600 words. It is asked for facts that were said, for facts
that were not ("not mentioned"), for the words after quoted words, whether a word was said, and for sentences. Lines
of one recording follow each other with the same "heard":
{"heard", "question", "answer", "kind"}; a recording that nobody asks about has one line with "heard" alone.

    python -m recipes.small.make_text_data --output train_text.jsonl --count 6000 --seed 1
    python -m recipes.small.make_text_data --output valid_text.jsonl --count 150 --seed 2 --held
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.small.facts import Asked, Fact, FactSource, capitalised, is_held
from recipes.small.recogniser_text import Style, misheard, written
from recipes.small.running_text import SOURCES, definitions

NOT_MENTIONED = "not mentioned"
_LEADS = (
    "well, ",
    "by the way, ",
    "as you know, ",
    "I heard that ",
    "they say that ",
    "please note that ",
    "also, ",
    "so, ",
    "I must tell you that ",
    "remember that ",
    "it is true that ",
    "and ",
    "yesterday I read that ",
    "in fact, ",
    "one more thing: ",
    "it was said that ",
    "let me tell you that ",
    "our reporter says that ",
    "to begin with, ",
)
_AFTER = (
    'What was said right after the words "{}"?',
    "What was said right after the words '{}'?",
    'What follows "{}"?',
    'What comes after the words "{}"?',
    'Which words come right after "{}"?',
    "What did they say after '{}'?",
)
_WORD_SAID = (
    'Was the word "{}" said?',
    "Was the word '{}' said?",
    'Did anybody say "{}"?',
    'Does the word "{}" occur?',
    "Is the word '{}' mentioned?",
    "Did they say the word {}?",
)
_QUOTE = (
    "What sentence mentions {}?",
    "Quote the sentence about {}.",
    "Which sentence mentions {}?",
    "What exactly was said about {}?",
    "Repeat the sentence with {}.",
    "What did they say about {}?",
)
_FIRST = ("What is the first sentence?", "What was said first?", "Quote the first sentence.", "How does it begin?")
_LAST = ("What is the last sentence?", "What was said last?", "Quote the last sentence.", "How does it end?")
_COMMON = set(" ".join(json.loads(Path(__file__).with_name("words.json").read_text())["common"]).split())


@dataclass(frozen=True)
class Sentence:
    """A sentence as it was said and as it was heard."""

    text: str  # as it was said
    heard: str  # as the recogniser wrote it
    fact: Fact | None = None


def comparable(text: str) -> str:
    """Lower-case words without punctuation, between spaces: what is searched for in what."""
    return f" {' '.join(re.sub(r'[^a-z0-9 ]+', ' ', text.lower()).split())} "


def defined(noun: str, meaning: str) -> Fact:
    """A definition as a fact."""
    name = noun if noun.endswith("s") else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    verb = "are" if noun.endswith("s") else "is"
    ways = (f"What {verb} {name}?", f"What is meant by the word {noun}?", f"How is the word {noun} explained?")
    return Fact(f"{name} {verb} {meaning}.", (Asked(ways, meaning),), (), f"definition {noun}")


class Library:
    """Everything recordings are made of, for training or for validation.

    `sources` names the running texts; of each passage a hash decides whether it is held out, as for templates.
    """

    def __init__(self, held: bool, sources: Sequence[str]) -> None:
        self.facts = FactSource(held)
        self.passages = {}
        for name in sources:
            kept = [p for p in SOURCES[name]() if is_held(p[0]) == held]
            if kept:
                self.passages[name] = kept
            else:
                print(f"{name} is not installed: left out")
        self.definitions = [d for d in definitions() if is_held(d[0]) == held] if "wordnet" in sources else []
        every = Counter(w for ps in self.passages.values() for p in ps[:20000] for w in comparable(" ".join(p)).split())
        every.update(w for f in self.facts.fillers for w in comparable(f).split())
        self.words = sorted(w for w, n in every.items() if len(w) >= 4 and n >= 3 and w.isalpha() and w not in _COMMON)

    def running(self, words: int, rng: random.Random) -> list[str]:
        """Sentences of running text, about so many words."""
        texts: list[str] = []
        name = rng.choice(sorted(self.passages)) if self.passages else None
        while name and sum(len(t.split()) for t in texts) < words:
            texts += rng.choice(self.passages[name])
            if rng.random() < 0.2:
                name = rng.choice(sorted(self.passages))
        return texts or rng.sample(self.facts.fillers, min(len(self.facts.fillers), max(1, words // 8)))

    def draw_fact(self, rng: random.Random) -> Fact:
        """A fact, or a word's definition."""
        if self.definitions and rng.random() < 0.1:
            return defined(*rng.choice(self.definitions))
        return self.facts.draw(rng)


def draw_facts(library: Library, count: int, rng: random.Random) -> list[Fact]:
    """Facts of a recording; now and then two of one template, so that only the details tell them apart."""
    facts: list[Fact] = []
    while len(facts) < count:
        fact = library.draw_fact(rng)
        again = rng.random() < 0.15
        if again or all(f.template != fact.template for f in facts):
            facts.append(fact)
        templates = {t["say"][0]: t for t in library.facts.templates}
        if len(facts) < count and rng.random() < 0.12 and fact.template in templates:
            facts.append(library.facts.from_template(templates[fact.template], rng))
    return facts


def compose(library: Library, words: int, style: Style, rng: random.Random) -> list[Sentence]:
    """A recording's sentences, about `words` words."""
    kind = rng.choices(("talk", "mixed", "text"), (5, 4, 1.2))[0]
    facts = [] if kind == "text" else draw_facts(library, max(1, round(words * rng.uniform(0.4, 0.9) / 13)), rng)
    spoken = sum(len(f.sentence.split()) for f in facts)
    if kind == "talk":
        rest = [rng.choice(library.facts.fillers) for _ in range(max(0, (words - spoken) // 9))]
    else:
        rest = library.running(max(8, words - spoken), rng)
    lines: list[tuple[str, Fact | None]] = [(text, None) for text in rest]
    for said in facts:  # running text keeps its order, facts fall anywhere
        text = rng.choice(_LEADS) + said.sentence if rng.random() < 0.25 else said.sentence
        lines.insert(rng.randint(0, len(lines)), (capitalised(text), said))
    sentences = []
    for text, fact in lines:
        kept = [written(a.answer, style) for a in fact.asked] if fact else []
        sentences.append(Sentence(text, misheard(written(text, style), kept, style, rng), fact))
    return sentences


def ask_facts(sentences: Sequence[Sentence], style: Style, spoken: bool, rng: random.Random) -> list[dict]:
    """Questions about what was said, those with two different answers left out."""
    answers: dict[str, set[str]] = {}
    for sentence in sentences:
        for asked in sentence.fact.asked if sentence.fact else ():
            for wording in asked.wordings:
                answers.setdefault(comparable(wording), set()).add(asked.answer)
    lines = []
    for sentence in sentences:
        for asked in sentence.fact.asked if sentence.fact else ():
            wording = rng.choice(asked.wordings)
            heard = written(asked.answer, style)
            if len(answers[comparable(wording)]) > 1 or comparable(heard) not in comparable(sentence.heard):
                continue
            lines.append({"question": wording, "answer": asked.answer if spoken else heard, "kind": "said"})
    return lines


def ask_absent(library: Library, sentences: Sequence[Sentence], count: int, rng: random.Random) -> list[dict]:
    """Questions that the recording does not answer: half of them near a fact that was said."""
    facts = [s.fact for s in sentences if s.fact]
    known = {comparable(w) for f in facts for a in f.asked for w in a.wordings}
    templates = {f.template for f in facts}
    near = [q for f in facts for q in f.absent]
    lines: list[dict] = []
    for _ in range(20 * count):
        if len(lines) == count:
            break
        if near and rng.random() < 0.55:
            question = rng.choice(near)
        else:
            other = library.draw_fact(rng)
            if other.template in templates:
                continue
            question = rng.choice(rng.choice(other.asked).wordings)
        if comparable(question) not in known:
            known.add(comparable(question))
            lines.append({"question": question, "answer": NOT_MENTIONED, "kind": "absent"})
    return lines


def ask_words(library: Library, sentences: Sequence[Sentence], rng: random.Random) -> Iterator[dict]:
    """Endless questions about the words themselves: what follows, was a word said, which sentence."""
    texts = [s.heard for s in sentences]
    plain = comparable(" ".join(texts))
    count = Counter(plain.split())
    while True:
        kind = rng.choices(("after", "yes", "no", "quote", "first", "last"), (4, 1.6, 1.6, 3, 0.4, 0.4))[0]
        text = rng.choice(texts)
        words = text.split()
        rare = [w for w in re.findall(r"[A-Za-z]{5,}", text) if w.lower() not in _COMMON and comparable(w) in plain]
        if kind == "after" and len(words) >= 9:
            size = rng.randint(3, 5)
            at = rng.randint(0, len(words) - size - 4)
            quoted = " ".join(words[at : at + size]).strip(" .,;:!?\"'()")
            following = " ".join(words[at + size : at + size + 8]).strip(" .,;:!?\"'()")
            if plain.count(comparable(quoted)) == 1 and '"' not in quoted + following:
                yield {"question": rng.choice(_AFTER).format(quoted), "answer": following, "kind": kind}
        elif kind == "yes" and rare:
            yield {"question": rng.choice(_WORD_SAID).format(rng.choice(rare)), "answer": "yes", "kind": "word"}
        elif kind == "no":
            word = rng.choice(library.words)
            if not any(w.startswith(word[:5]) for w in count):
                yield {"question": rng.choice(_WORD_SAID).format(word), "answer": "no", "kind": "word"}
        elif kind == "quote" and rare and 4 <= len(words) <= 30:
            word = rng.choice(rare)
            if count[word.lower()] == 1:
                answer = text.strip().rstrip(".")
                yield {"question": rng.choice(_QUOTE).format(word), "answer": answer, "kind": kind}
        elif kind in ("first", "last") and len(words) <= 30 and words:
            answer = texts[0 if kind == "first" else -1].strip().rstrip(".")
            if len(answer.split()) <= 30:
                yield {"question": rng.choice(_FIRST if kind == "first" else _LAST), "answer": answer, "kind": kind}


def make_recording(library: Library, rng: random.Random, shortest: int, longest: int, spoken: bool) -> list[dict]:
    """One recording's lines."""
    words = round(shortest * (longest / shortest) ** rng.random())
    style = Style.draw(rng)
    sentences = compose(library, words, style, rng)
    heard = " ".join(s.heard for s in sentences)
    if rng.random() < 0.03:
        return [{"heard": heard}]
    total = rng.randint(6, 14)
    said = ask_facts(sentences, style, spoken, rng)
    rng.shuffle(said)
    lines = said[: round(0.6 * total)]
    lines += ask_absent(library, sentences, round(0.2 * total), rng)
    seen: set[int] = set()
    for line in ask_words(library, sentences, rng):
        if len(lines) >= total or len(seen) > 200:
            break
        seen.add(len(seen))
        if all(line["question"] != other["question"] for other in lines):
            lines.append(line)
    rng.shuffle(lines)
    return [{"heard": heard, **line} for line in lines]


def main() -> None:
    """Write the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to write")
    parser.add_argument("--count", type=int, default=6000, help="recordings (6000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sources", nargs="*", default=sorted(SOURCES), choices=sorted(SOURCES), help="running texts")
    parser.add_argument("--shortest", type=int, default=30, help="words of the shortest recordings (30)")
    parser.add_argument("--longest", type=int, default=600, help="words of the longest recordings (600)")
    parser.add_argument("--held", action="store_true", help="held-out templates, names and texts: for validation")
    parser.add_argument(
        "--answers",
        choices=("heard", "spoken"),
        default="heard",
        help='spelling of numbers and titles in answers: as "heard" ("15") or as they are said ("fifteen")',
    )
    args = parser.parse_args()
    library = Library(args.held, args.sources)
    with open(args.output, "w") as file:
        for number in range(args.count):
            rng = random.Random(f"{args.seed} {number}")
            file.writelines(
                json.dumps(line) + "\n"
                for line in make_recording(library, rng, args.shortest, args.longest, args.answers == "spoken")
            )


if __name__ == "__main__":
    main()
