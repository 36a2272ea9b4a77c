"""From a reading to words with times, and from words to the decoder's tokens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from speech_xl.backend import Recognition
from speech_xl.errors import CheckpointError
from speech_xl.front_end import word_tokens
from speech_xl.prompt import Prompt
from speech_xl.recognition import (
    Word,
    load_recognizer_tokenizer,
    split_words,
    token_starts,
    without_loops,
    words_of,
)
from tests.tiny import RECOGNIZER_TOKENIZER, TOKENIZER, tiny_recognizer_config

PROMPT = Prompt(TOKENIZER, tiny_recognizer_config().prompt)


def looks_at(*places: tuple[int, int], positions: int) -> np.ndarray:
    """(T, S) float32 attention, each row on its own places [first, past the last)."""
    attention = np.full((len(places), positions), 0.01, np.float32)
    for row, (first, end) in enumerate(places):
        attention[row, first:end] = 1.0
    return attention / attention.sum(1, keepdims=True)


def reading(
    text: str, tokenizer: Tokenizer = RECOGNIZER_TOKENIZER, positions: int = 1500, **changes: object
) -> Recognition:
    """A reading whose tokens, and the end, share the positions evenly."""
    ids = tokenizer.encode(text).ids
    edges = np.linspace(0, positions, len(ids) + 2).astype(int)
    attention = looks_at(*zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True), positions=positions)
    return Recognition(ids, attention, 0.0, -0.2)._replace(**changes)


def test_tokens_start_where_they_look() -> None:
    places = [(0, 20), (20, 60), (60, 70), (70, 100)]
    assert np.abs(token_starts(looks_at(*places, positions=100)) - [0, 20, 60, 70]).max() <= 3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 99))
def test_any_attention_gives_starts_in_order(tokens: int, positions: int, seed: int) -> None:
    attention = np.random.default_rng(seed).random((tokens, positions), np.float32)
    starts = token_starts(attention)
    assert starts.shape == (tokens,) and starts[0] == 0 and (np.diff(starts) >= 0).all() and starts[-1] < positions


def test_the_warping_is_that_of_the_plain_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech_xl.recognition.SMOOTHED", 1)
    for seed in range(10):
        looks = np.random.default_rng(seed).random((5, 9))
        z = (looks - looks.mean(0)) / looks.std(0)
        table = np.full((6, 10), -np.inf)
        table[0, 0] = 0
        for row, at in np.ndindex(5, 9):
            table[row + 1, at + 1] = z[row, at] + max(table[row, at], table[row, at + 1], table[row + 1, at])
        row, at, starts = 5, 9, np.zeros(5, int)
        while row:
            starts[row - 1] = at - 1
            steps = [(row, at - 1), (row - 1, at), (row - 1, at - 1)]
            row, at = max(steps, key=lambda step: table[step])
        assert token_starts(looks).tolist() == starts.tolist()


def test_words_have_their_letters_and_times() -> None:
    words = words_of(reading(" what is said, here."), RECOGNIZER_TOKENIZER, 30.0)
    assert [w.text for w in words] == ["what", "is", "said,", "here."]
    assert all(a.start < a.end <= b.start for a, b in pairwise(words)) and words[-1].end <= 30
    assert all(w.end - w.start <= 0.4 + 0.1 * len(w.text) + 1e-6 for w in words)


def test_broken_characters_and_bare_marks_are_no_words() -> None:
    ids = RECOGNIZER_TOKENIZER.encode(" caf\u00e9 - \u00fcber").ids
    assert [w for w, _, _ in split_words(ids, RECOGNIZER_TOKENIZER)] == ["caf\u00e9", "\u00fcber"]
    half = ids[: RECOGNIZER_TOKENIZER.encode(" caf\u00e9").ids.__len__() - 1]
    assert [w for w, _, _ in split_words(half, RECOGNIZER_TOKENIZER)] == ["caf"]


def test_silence_is_whispers_rule() -> None:
    text = " what is said"
    assert words_of(reading(text, no_speech=0.9, mean_log_prob=-1.5), RECOGNIZER_TOKENIZER, 30.0) == []
    assert words_of(reading(text, no_speech=0.9, mean_log_prob=-0.5), RECOGNIZER_TOKENIZER, 30.0)
    assert words_of(reading(text, no_speech=0.5, mean_log_prob=-1.5), RECOGNIZER_TOKENIZER, 30.0)
    assert words_of(Recognition([], np.ones((1, 9), np.float32), 0.0, 0.0), RECOGNIZER_TOKENIZER, 1.0) == []


def test_a_loop_is_kept_once_and_talk_as_it_is() -> None:
    def cut(text: str) -> str:
        return " ".join(w.text for w in without_loops([Word(t, i, i + 1) for i, t in enumerate(text.split())]))

    said = "No, no, no, I said that one and one and one make three."
    assert cut(said) == said and cut("") == ""
    assert cut("Then we go. " + "Thank you. " * 40) == "Then we go. Thank you."
    assert (
        cut("one two three " + "and so it goes on " * 12 + "until here") == "one two three and so it goes on until here"
    )


def test_a_word_has_its_own_tokens_and_they_share_its_time() -> None:
    ids, times, firsts = word_tokens([Word("drink", 1.0, 2.0), Word("what?", 2.5, 3.0)], PROMPT)
    alone = word_tokens([Word("what?", 0.0, 1.0)], PROMPT)[0]
    assert ids[firsts[1] :] == alone and firsts[0] == 0
    assert times.dtype == np.float32 and times.shape == (len(ids), 2)
    assert times[0, 0] == 1 and times[firsts[1] - 1, 1] == 2 and times[firsts[1], 0] == 2.5 and times[-1, 1] == 3
    assert (np.diff(times[:, 0]) >= 0).all() and (times[:, 0] <= times[:, 1]).all()
    assert word_tokens([], PROMPT)[1].shape == (0, 2)


@pytest.mark.parametrize("damage", ["absent", "broken", "larger"])
def test_a_wrong_tokenizer_is_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "recognizer_tokenizer.json"
    if damage == "larger":
        RECOGNIZER_TOKENIZER.save(str(path))
    elif damage == "broken":
        path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"recognizer_tokenizer\.json"):
        load_recognizer_tokenizer(tmp_path, 200)
