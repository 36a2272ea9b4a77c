"""Recordings of numbered orders as words and as synthetic speech, with questions, for every arm of the study alike.

The language is the order desk's. Words stand for what a recogniser would have heard; the spoken recordings, for the arms
about the adapter, are made of text-to-speech clips. It knows JSON lines, no model.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import soundfile as sf

from recipes.order_desk.corpus import Clip, load_tts, synthesize
from recipes.order_desk.grammar import DIGIT_WORDS, NOT_MENTIONED, QUESTIONS, sample_slots, words_of
from recipes.order_desk.recordings import build_recording
from speech_xl.config import SAMPLING_RATE
from speech_xl.whole_file import whole_file

SAID, ABSENT = "said", "absent"  # kinds of questions: about what was said, and about what was not
ABSENT_KEPT = 0.3  # share of the latter: "not mentioned" must not be the likeliest answer
HELD_SEED = 10**6


def text_lines(recordings: int, orders: tuple[int, int], seed: int) -> Iterator[dict[str, str]]:
    """One line for each question about `recordings` recordings of so many (least, most) orders."""
    rng = random.Random(seed)
    for _ in range(recordings):
        numbers = rng.sample(range(100), rng.randint(*orders))
        words, asked = [], []
        for number in numbers:
            slots = sample_slots(rng)
            words += [*(DIGIT_WORDS[digit] for digit in divmod(number, 10)), *words_of(slots, rng)]
            for slot, wordings in QUESTIONS.items():
                if slot in slots or rng.random() < ABSENT_KEPT:
                    asked.append((wordings[0].format(n=number), slots.get(slot, NOT_MENTIONED)))
        yield from (question | {"heard": " ".join(words)} for question in _questions(asked))


def spoken_lines(
    folder: Path, orders: list[Clip], digits: list[Clip], recordings: int, seed: int
) -> Iterator[dict[str, str]]:
    """The same about spoken recordings of one or two orders, which are written to `folder`/audio; with what is said."""
    rng = random.Random(seed)
    for i in range(recordings):
        recording = build_recording(orders, digits, numbered=rng.randint(1, 2), plain=0, seed=seed + i)
        path = folder / "audio" / f"{seed + i}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, recording.samples, SAMPLING_RATE, subtype="PCM_16")
        asked = [
            (q.text, q.answer) for q in recording.questions if q.answer != NOT_MENTIONED or rng.random() < ABSENT_KEPT
        ]
        yield from (question | {"audio": path.relative_to(folder).as_posix()} for question in _questions(asked))


def clip_lines(folder: Path, clips: list[Clip]) -> Iterator[dict[str, str]]:
    """A line with the words of every clip: what alignment learns from."""
    for clip in clips:
        path = folder / "audio" / f"{clip.name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, clip.samples, SAMPLING_RATE, subtype="PCM_16")
        yield {"audio": path.relative_to(folder).as_posix(), "text": " ".join(clip.words or ())}


def _questions(asked: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"question": question, "answer": answer, "kind": ABSENT if answer == NOT_MENTIONED else SAID}
        for question, answer in asked
    ]


def make_text(folder: Path, recordings: int, held: int, orders: tuple[int, int]) -> tuple[Path, Path]:
    """-> (lines to train on, lines that are never trained on); what is there already is left as it is."""
    name = f"text-{recordings}-{held}-{orders[0]}-{orders[1]}"
    paths = folder / f"{name}.jsonl", folder / f"{name}-held.jsonl"
    for path, count, seed in zip(paths, (recordings, held), (1, HELD_SEED), strict=True):
        if not path.exists():
            write_lines(path, text_lines(count, orders, seed))
    return paths


def make_speech(folder: Path, clips: int, recordings: int, held: int) -> tuple[Path, Path, Path]:
    """-> (clips with their words, recordings to train on, recordings of clips that are in neither)."""
    folder = folder / f"speech-{clips}-{recordings}-{held}"
    paths = folder / "clips.jsonl", folder / "asked.jsonl", folder / "held.jsonl"
    if not all(path.exists() for path in paths):
        synthesize(folder / "clips", clips, clips, seed=1)
        orders, digits = load_tts(folder / "clips")
        unheard = len(orders) // 10
        write_lines(paths[0], clip_lines(folder, [*orders[unheard:], *digits]))
        # A synthetic voice says one digit only, so all of them together count as one that says all ten.
        voice = [Clip(c.samples, c.words, None, c.digit, "tts", c.source, c.name) for c in digits]
        write_lines(paths[1], spoken_lines(folder, orders[unheard:], voice, recordings, seed=1))
        # With clips: what is aligned is validated on words.
        clips_and_asked = (
            clip_lines(folder, orders[:unheard]),
            spoken_lines(folder, orders[:unheard], voice, held, HELD_SEED),
        )
        write_lines(paths[2], itertools.chain(*clips_and_asked))
    return paths


def write_lines(path: Path, lines: Iterator[dict[str, str]]) -> None:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
