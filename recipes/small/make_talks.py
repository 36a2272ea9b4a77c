"""`python -m recipes.small.make_talks FOLDER`: spoken talks and single sentences, and JSON lines that the evaluation reads.

Facts and remarks that training never saw, one text-to-speech voice a talk. FOLDER/talks.jsonl asks for what was said, for
what was not, and for the words of each talk; FOLDER/needles.jsonl holds sentences alone, for the needle grid.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from recipes.order_desk.tts import Voice, sample_voice, speak
from recipes.small.facts import Fact, capitalised
from recipes.small.make_text_data import Library, Sentence, ask_absent, comparable, draw_facts
from speech_xl.config import SAMPLING_RATE
from speech_xl.errors import SpeechXLError
from speech_xl.whole_file import whole_file

PAUSE = 0.4  # seconds behind each sentence
WORDS_PER_MINUTE = 140  # of the voices, roughly: what a talk's length is aimed at with
LOUDNESS = 0.06  # RMS of a sentence: engines differ by far more than people do


def talk_lines(folder: Path, name: str, library: Library, minutes: float, questions: int, seed: str) -> list[dict]:
    """Speak a talk to `folder`/`name`.flac -> its lines."""
    rng = random.Random(seed)
    words = round(minutes * WORDS_PER_MINUTE)
    facts = draw_facts(library, max(1, words // 25), rng)
    texts: list[tuple[str, Fact | None]] = [(capitalised(fact.sentence), fact) for fact in facts]
    while sum(len(text.split()) for text, _ in texts) < words:
        texts.insert(rng.randint(0, len(texts)), (rng.choice(library.facts.fillers), None))
    spans = write_spoken(folder / f"{name}.flac", [text for text, _ in texts], sample_voice(rng))
    about = {"audio": f"{name}.flac"}
    said = [about | line for line in said_lines(texts, spans, rng)]
    sentences = [Sentence(text, text, fact) for text, fact in texts]
    absent = [about | line for line in ask_absent(library, sentences, max(1, questions // 4), rng)]
    transcript = about | {"text": " ".join(text for text, _ in texts), "kind": "transcript"}
    return [*said[:questions], *absent, transcript]


def said_lines(
    texts: Sequence[tuple[str, Fact | None]], spans: Sequence[tuple[float, float]], rng: random.Random
) -> list[dict]:
    """A question about each fact, with where its answer is said; those that two facts answer are left out."""
    answers: dict[str, set[str]] = {}
    for _, fact in texts:
        for asked in fact.asked if fact else ():
            for wording in asked.wordings:
                answers.setdefault(comparable(wording), set()).add(asked.answer)
    lines = []
    for (_, fact), (start, end) in zip(texts, spans, strict=True):
        chosen = rng.choice(fact.asked) if fact else None
        wording = rng.choice(chosen.wordings) if chosen else ""
        if chosen and len(answers[comparable(wording)]) == 1:
            lines.append({"question": wording, "answer": chosen.answer, "start": start, "end": end, "kind": "said"})
    rng.shuffle(lines)
    return lines


def write_spoken(path: Path, texts: Sequence[str], voice: Voice) -> list[tuple[float, float]]:
    """Speak sentences into one file -> where each is, in seconds."""
    parts, spans, at = [], [], 0.0
    for text in texts:
        samples = speak(text, voice)
        samples = samples * (LOUDNESS / max(1e-9, float(np.sqrt(np.mean(np.square(samples))))))
        parts += [samples, np.zeros(round(PAUSE * SAMPLING_RATE), samples.dtype)]
        spans.append((round(at, 2), round(at + len(samples) / SAMPLING_RATE, 2)))
        at += (len(samples) + len(parts[-1])) / SAMPLING_RATE
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        sf.write(temporary, np.clip(np.concatenate(parts), -1, 1), SAMPLING_RATE, subtype="PCM_16", format="FLAC")
    return spans


def needle_line(folder: Path, name: str, library: Library, seed: str) -> dict:
    """Speak one fact to `folder`/`name`.flac -> its line."""
    rng = random.Random(seed)
    lines: list[dict] = []
    while not lines:  # a fact may have two answers to one question
        fact = library.draw_fact(rng)
        text = capitalised(fact.sentence)
        lines = said_lines([(text, fact)], [(0.0, 0.0)], rng)
    ((start, end),) = write_spoken(folder / f"{name}.flac", [text], sample_voice(rng))
    return {"audio": f"{name}.flac"} | lines[0] | {"start": start, "end": end}


def write_lines(path: Path, lines: Sequence[dict]) -> None:
    """Write JSON lines, all of them or none."""
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Make the talks and the needles -> the exit code."""
    parser = argparse.ArgumentParser(prog="python -m recipes.small.make_talks", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="talks.jsonl, needles.jsonl and the recordings go here")
    parser.add_argument("--talks", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=1.2, help="of each talk, roughly (1.2)")
    parser.add_argument("--questions", type=int, default=8, help="about what was said in each, at most (8)")
    parser.add_argument("--needles", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    library = Library(held=True, sources=())
    folder, seed = chosen.folder, chosen.seed
    try:
        talks = [
            line
            for i in tqdm(range(chosen.talks), desc="talks")
            for line in talk_lines(
                folder, f"talk-{seed}-{i}", library, chosen.minutes, chosen.questions, f"{seed} talk {i}"
            )
        ]
        needles = [
            needle_line(folder, f"needle-{seed}-{i}", library, f"{seed} needle {i}")
            for i in tqdm(range(chosen.needles), desc="needles")
        ]
        for name, lines in (("talks.jsonl", talks), ("needles.jsonl", needles)):
            if lines:
                write_lines(folder / name, lines)
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
