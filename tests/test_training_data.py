"""What training is fed: the order-desk language, synthetic voices, the clip cache, the split, distortion."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import librosa
import numpy as np
import pytest

from speech_xl.features import log_mel
from torch_backend.training import corpus, grammar, voices
from torch_backend.training.augment import FASTEST, SLOWEST, augment, spec_augment, warp_formants

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
        "coffeeDrink": "espresso", "size": "eight ounce", "numberOfShots": "single shot",
        "roast": "dark roast", "milkAmount": "lots of cream", "sugarAmount": "sugar",
    }  # fmt: skip
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
        voice = voices.sample_voice(rng)
        once, again = voices.speak("seven", voice), voices.speak("seven", voice)
        np.testing.assert_array_equal(once, again)
        assert once.dtype == np.float32 and 0.1 < len(once) / voices.RATE < 2


def test_missing_engines_are_named(monkeypatch):
    monkeypatch.setattr(voices.shutil, "which", lambda name: None)
    voices.engines.cache_clear()
    with pytest.raises(voices.VoiceError, match="apt install espeak-ng flite"):
        voices.sample_voice(random.Random(0))
    voices.engines.cache_clear()


@pytest.mark.parametrize("background", [0.0, 1e-4, 3e-3])
def test_trimming_keeps_all_speech(background):
    rng = np.random.default_rng(0)
    samples = background * rng.standard_normal(5 * voices.RATE).astype(np.float32)
    spoken = slice(2 * voices.RATE, 3 * voices.RATE)
    samples[spoken] += 0.2 * np.sin(np.arange(voices.RATE, dtype=np.float32))
    trimmed = voices.trim_silence(samples)
    start = (trimmed.ctypes.data - samples.ctypes.data) // samples.itemsize
    assert start <= spoken.start and start + len(trimmed) >= spoken.stop
    assert len(trimmed) < 1.3 * voices.RATE


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
        seconds = len(corpus._human_samples(row["path"], trim=True)) / voices.RATE
        assert len(words) / 7 < seconds <= row["seconds"] + 0.1  # nobody speaks seven words a second


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_augmentation_stays_finite_and_bounded(strength):
    rng = np.random.default_rng(1)
    bed = 0.1 * rng.standard_normal(20000).astype(np.float32)
    for n in (2, 700, 3000, 40000):
        samples = (0.2 * rng.standard_normal(n)).astype(np.float32).clip(-0.5, 0.5)
        for _ in range(20):
            out = augment(samples, rng, strength, bed)
            assert out.dtype == np.float32 and np.isfinite(out).all() and np.abs(out).max() <= 1
            assert n / FASTEST - 2 <= len(out) <= n / SLOWEST + 2
            if strength == 0:
                np.testing.assert_array_equal(out, samples)


def test_augmentation_of_silence_is_silence():
    out = augment(np.zeros(8000, np.float32), np.random.default_rng(2), 1.0)
    assert np.isfinite(out).all() and not out.any()


def test_warped_formants_move_a_tone_by_at_most_what_was_asked_for():
    rate, tone = 16_000, np.sin(2 * np.pi * 2000 * np.arange(32_000) / 16_000).astype(np.float32)
    mel = log_mel(tone, 80)[0]
    centres = librosa.mel_frequencies(82, fmin=0.0, fmax=rate / 2)[1:-1]
    found = []
    for seed in range(40):
        warped = mel.copy()
        warp_formants(warped, np.random.default_rng(seed), 0.13)
        found.append(np.log(centres[warped.mean(1).argmax()] / 2000))
    assert max(map(abs, found)) < 0.13 + 0.04 and np.std(found) > 0.05  # 0.04: half a band
    unmoved = mel.copy()
    warp_formants(unmoved, np.random.default_rng(0), 0.0)
    np.testing.assert_allclose(unmoved, mel, rtol=1e-5)


def test_spec_augment_blanks_a_part_in_place():
    rng = np.random.default_rng(3)
    mel = rng.standard_normal((80, 400)).astype(np.float32)
    kept = []
    for _ in range(50):
        changed = mel.copy()
        spec_augment(changed, rng, 1.0)
        kept.append((changed == mel).mean())
    assert 0.4 < min(kept) < 1 and np.mean(kept) > 0.7
    untouched = mel.copy()
    spec_augment(untouched, rng, 0.0)
    np.testing.assert_array_equal(untouched, mel)
