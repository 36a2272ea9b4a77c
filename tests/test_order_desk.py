"""The order desk: its language, synthetic voices, the clip cache, the split, and the JSON lines made of them."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from evaluation.data import read_data
from recipes.order_desk import corpus, grammar, tts
from recipes.order_desk.make_lines import asked_lines, spoken_lines, write_lines
from recipes.order_desk.recordings import build_recording
from speech_xl.config import SAMPLING_RATE
from training.data import read_recordings
from training.recipe import load_recipe

HUMAN_DATA = Path(os.environ.get("SPEECH_XL_HUMAN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
needs_voice = pytest.mark.skipif(
    not (shutil.which("espeak-ng") or shutil.which("flite")),
    reason="neither espeak-ng nor flite is installed",
)
needs_humans = pytest.mark.skipif(
    not (HUMAN_DATA / "orders").is_dir(), reason="no human clips here: set SPEECH_XL_HUMAN_DATA"
)


def test_candidates_contain_every_sampled_sentence():
    rng = random.Random(0)
    for _ in range(100):
        slots = grammar.sample_slots(rng)
        words = grammar.words_of(slots, rng)
        assert tuple(words) in grammar.candidates(slots, grammar.OPENINGS)
        assert set(words) <= set(grammar.SPOKEN_WORDS)
        # The slots can be read back: each is a phrase of the sentence, and absent ones are not.
        text = f" {' '.join(words)} "
        assert all(f" {value} " in text for value in slots.values())
        assert ("shot" in words) == ("numberOfShots" in slots)
        assert ("roast" in words) == ("roast" in slots)


def test_candidates_are_distinct_and_few():
    slots = {
        "coffeeDrink": "espresso",
        "size": "eight ounce",
        "numberOfShots": "single shot",
        "roast": "dark roast",
        "milkAmount": "lots of cream",
        "sugarAmount": "sugar",
    }
    every = grammar.candidates(slots)
    assert len(set(every)) == len(every) == 24 * len(grammar.LIKELY_OPENINGS)


@pytest.mark.parametrize("drink, article", [("americano", "an"), ("iced mocha", "an"), ("latte", "a")])
def test_article_fits_the_next_sound(drink, article):
    spoken = grammar.candidates({"coffeeDrink": drink}, ["brew"])
    assert spoken == [("brew", article, *drink.split()), ("brew", *drink.split())]


def test_every_question_names_its_order():
    assert set(grammar.QUESTIONS) == set(grammar.SLOTS)
    for templates in (*grammar.QUESTIONS.values(), grammar.TRANSCRIBE):
        assert all("7" in template.format(n=7) for template in templates)


@needs_voice
def test_a_voice_says_the_same_twice():
    rng = random.Random(3)
    for _ in range(4):
        voice = tts.sample_voice(rng)
        once, again = tts.speak("seven", voice), tts.speak("seven", voice)
        np.testing.assert_array_equal(once, again)
        assert once.dtype == np.float32 and 0.1 < len(once) / tts.RATE < 2


def test_missing_engines_are_named(monkeypatch):
    monkeypatch.setattr(tts.shutil, "which", lambda name: None)
    tts.engines.cache_clear()
    with pytest.raises(tts.VoiceError, match="apt install espeak-ng flite"):
        tts.sample_voice(random.Random(0))
    tts.engines.cache_clear()


@pytest.mark.parametrize("background", [0.0, 1e-4, 3e-3])
def test_trimming_keeps_all_speech(background):
    rng = np.random.default_rng(0)
    samples = background * rng.standard_normal(5 * tts.RATE).astype(np.float32)
    spoken = slice(2 * tts.RATE, 3 * tts.RATE)
    samples[spoken] += 0.2 * np.sin(np.arange(tts.RATE, dtype=np.float32))
    trimmed = tts.trim_silence(samples)
    start = (trimmed.ctypes.data - samples.ctypes.data) // samples.itemsize
    assert start <= spoken.start and start + len(trimmed) >= spoken.stop
    assert len(trimmed) < 1.3 * tts.RATE


@needs_voice
def test_cache_resumes_and_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SHARD", 4)
    corpus.synthesize(tmp_path, orders=6, digits=5, seed=9)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    orders, digits = corpus.load_tts(tmp_path)
    assert [clip.digit for clip in digits] == [0, 1, 2, 3, 4]
    assert all(clip.words in grammar.candidates(clip.slots, grammar.OPENINGS) for clip in orders)
    assert all(clip.samples.dtype == np.int16 and np.abs(clip.samples).max() == 16384 for clip in orders)

    corpus.synthesize(tmp_path, orders=6, digits=5, seed=9)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}

    corpus.synthesize(tmp_path, orders=9, digits=5, seed=9)
    more, _ = corpus.load_tts(tmp_path)
    assert len(more) == 9 and not list(tmp_path.rglob("*.partial"))
    for old, new in zip(orders, more, strict=False):
        assert old.name == new.name
        np.testing.assert_array_equal(old.samples, new.samples)


def _silent_clip(name: str, digit: int | None = None) -> corpus.Clip:
    return corpus.Clip(np.zeros(1, np.int16), None, {}, digit, name.split("_")[0], "human", name)


def test_split_leaks_nobody():
    orders = [_silent_clip(f"order{i}.flac") for i in range(500)]
    digits = [_silent_clip(f"{who}_{i}", i) for who in ("ann", "bob", "cy") for i in range(10)]
    train, val, train_digits, val_digits = corpus.split_human(orders, digits, "bob")
    assert not {clip.name for clip in train} & {clip.name for clip in val}
    assert len(train) + len(val) == 500 and 70 < len(val) < 130
    assert {clip.speaker for clip in val_digits} == {"bob"} and len(val_digits) == 10
    assert {clip.speaker for clip in train_digits} == {"ann", "cy"}
    # Another order of the clips, or fewer of them, moves nobody to the other side.
    again = corpus.split_human(orders[::-2], digits, "bob")
    assert {clip.name for clip in again[1]} <= {clip.name for clip in val}
    with pytest.raises(ValueError, match="ann, bob, cy"):
        corpus.split_human(orders, digits, "dora")


@needs_humans
def test_trimming_leaves_room_for_every_human_word():
    for row in corpus._manifest(HUMAN_DATA / "orders")[::20]:
        words = min(grammar.candidates(row["slots"], [""]), key=len)
        seconds = len(corpus._human_samples(row["path"], trim=True)) / tts.RATE
        assert len(words) / 7 < seconds <= row["seconds"] + 0.1  # nobody speaks seven words a second


def marked_clips() -> tuple[list[corpus.Clip], list[corpus.Clip]]:
    """Orders and digits whose samples say which they are: a constant each."""
    rng = random.Random(0)
    orders = [
        corpus.Clip(
            np.full(SAMPLING_RATE, 1000 + i, np.int16), None, grammar.sample_slots(rng), None, str(i), "human", str(i)
        )
        for i in range(6)
    ]
    digits = [
        corpus.Clip(np.full(4000, 100 + d, np.int16), (grammar.DIGIT_WORDS[d],), None, d, "v", "human", f"d{d}")
        for d in range(10)
    ]
    return orders, digits


@pytest.mark.parametrize("minutes", [0, 3])
def test_questions_point_at_the_order_they_ask_about(minutes: int) -> None:
    orders, digits = marked_clips()
    recording = build_recording(orders, digits, numbered=4, plain=3, seed=1, least_seconds=60 * minutes)
    assert len(recording.questions) == 4 * len(grammar.QUESTIONS)
    assert len(recording.samples) >= 60 * minutes * SAMPLING_RATE
    values = np.round(recording.samples * 32768).astype(int)
    for question in recording.questions:
        span = values[round(question.start * SAMPLING_RATE) : round(question.end * SAMPLING_RATE)]
        heard = [v for v in dict.fromkeys(span.tolist()) if v]
        tens, ones = divmod(question.number, 10)
        assert heard[0] == 100 + tens and (100 + ones) in heard
        order = orders[heard[-1] - 1000]
        assert question.answer == order.slots.get(question.slot, grammar.NOT_MENTIONED)


def test_the_same_seed_gives_the_same_recording() -> None:
    orders, digits = marked_clips()
    first, second, other = (build_recording(orders, digits, 3, 2, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.samples, second.samples) and first.questions == second.questions
    assert first.questions != other.questions


def test_lines_are_what_training_reads(tmp_path):
    orders, digits = marked_clips()
    orders = [dataclasses.replace(o, words=("brew", "a", "latte")) for o in orders]
    write_lines(tmp_path / "spoken.jsonl", spoken_lines(tmp_path, orders, digits))
    write_lines(tmp_path / "asked.jsonl", asked_lines(tmp_path, orders, digits, count=2, most=2, seed=5))
    spoken = read_recordings([tmp_path / "spoken.jsonl"])
    assert [r.text for r in spoken[:1] + spoken[-1:]] == ["brew a latte", "nine"] and len(spoken) == 16
    asked = read_recordings([tmp_path / "asked.jsonl"])
    assert len(asked) == 2 and all(len(r.questions) % len(grammar.SLOTS) == 0 for r in asked)
    assert all(r.audio.exists() for r in spoken + asked)
    assert {q.kind for r in asked for q in r.questions} == set(grammar.SLOTS)
    write_lines(tmp_path / "judged.jsonl", asked_lines(tmp_path, orders, digits, count=2, most=2, seed=5, spans=True))
    items = read_data(tmp_path / "judged.jsonl").items
    assert [(i.question, i.answer) for i in items] == [(q.text, q.answer) for r in asked for q in r.questions]
    assert all(0 < item.span[0] < item.span[1] for item in items)


def test_its_recipe_can_be_followed():
    recipe = load_recipe(Path(corpus.__file__).parent / "nano.json")
    assert [s.kind for s in recipe.stages] == ["alignment", "answering", "summarization"]
