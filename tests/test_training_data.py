"""JSON lines and recipes: what is read is what was written, and every mistake is one sentence that says where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from speech_xl.config import ModelConfig
from speech_xl.config_file import load_config
from speech_xl.prompt import Prompt
from tests.tiny_training import STAGE, TALKS, hearing_checkpoint, recipe, write_lines
from training.__main__ import main
from training.batch import Batcher
from training.data import DataError, read_recordings, recording_at, scan_recordings
from training.hearing import Hearing
from training.recipe import RecipeError, load_recipe, recipe_from_dict, settings_of
from training.samples import Order, Samples, index_samples


def test_lines_of_the_same_recording_are_one_with_several_questions(tmp_path: Path) -> None:
    lines = [
        {"audio": "a.wav", "text": "hello", "note": "left alone"},
        {"audio": "a.wav", "question": "q1?", "answer": "a1"},
        {"audio": "a.wav", "start": 1, "end": 2.5, "question": "q2?", "answer": "a2", "kind": "who"},
        {"audio": "a.wav", "question": "q3?", "answer": "a3"},
    ]
    first, second, third = read_recordings([write_lines(tmp_path / "l.jsonl", lines)])
    assert first.audio == tmp_path / "a.wav" and first.text == "hello"
    assert [(q.text, q.answer, q.kind) for q in first.questions] == [("q1?", "a1", "question")]
    assert (second.start, second.end, second.questions[0].kind) == (1.0, 2.5, "who")
    assert third.text is None  # not next to the first


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "is not JSON"),
        ("[1]", "not a JSON object"),
        ({"text": "hello"}, "neither audio nor heard"),
        ({"audio": "a.wav", "heard": "hello"}, "both audio and heard"),
        ({"heard": "hello", "question": "what?"}, "give both or none"),
        ({"heard": "hello", "answer": "this"}, "give both or none"),
        ({"audio": "a.wav"}, "nothing to learn"),
        ({"heard": "  "}, "heard is '  '"),
        ({"heard": 7}, "heard is 7"),
        ({"audio": "a.wav", "text": "t", "start": "soon"}, "number of seconds"),
        ({"audio": "a.wav", "text": "t", "start": 3, "end": 3}, "not after start"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, words: str) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text('{"heard": "fine"}\n\n' + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(DataError, match=words) as error:
        read_recordings([path])
    assert str(error.value).startswith(f"{path}, line 3: ") and str(error.value).endswith(".")


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"heard": "caf\xe9"}\n')
    for name, words in (("empty", "has no lines"), ("latin", "not UTF-8"), ("absent", "cannot be read")):
        with pytest.raises(DataError, match=words):
            read_recordings([tmp_path / f"{name}.jsonl"])


def test_the_command_ends_with_one_sentence_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = hearing_checkpoint(tmp_path / "model")
    data = write_lines(tmp_path / "l.jsonl", [{"audio": "gone.wav", "text": "hello"}])
    assert main(["--model", str(model), "--data", str(data), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "line 1: " in error and "gone.wav" in error and "\n" not in error
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "guessing"}, "kind must be one of"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"steps": True}, "steps must be a whole number"),
        ({"batch": 2, "accumulation": 3}, "more than the batch"),
        ({"stepps": 3}, "unknown fields stepps"),
        ({"train": ["("]}, "no regular expression"),
        ({"lessons": []}, "every lesson needs ratios"),
        ({"lessons": [{"ratios": ["rawest"]}]}, "whole number"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"learning_rates": 0.1}, "learning_rates must be"),
        ({"loss": "ctc"}, "only an alignment stage"),
        ({"name": "two words"}, "one plain word"),
        ({"minutes": -1}, "positive number"),
        ({"pack": 0}, "pack must be a whole number from 1"),
        ({"pack": 900, "accumulation": 2}, "leave accumulation out"),
    ],
)
def test_a_bad_stage_is_one_sentence(change: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(change)


def test_a_bad_recipe_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for data, words in [
        ([], "must be a JSON object"),
        ({}, "has no stages"),
        ({"stages": [STAGE, STAGE]}, "names of their own"),
        ({"stages": [STAGE], "sst": {"interval": 8, "ratios": [3], "default_ratio": 3}}, "divide the interval"),
        ({"stages": [STAGE], "sst": {"interval": 8, "ratios": [2], "default_ratio": 4}}, "one of sst.ratios"),
        ({"stages": [{"name": "a", "kind": "answering"}]}, "incomplete"),
    ]:
        with pytest.raises(RecipeError, match=words):
            recipe_from_dict(data)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(broken)
    assert load_recipe(None).stages


def test_the_learning_rate_warms_up_and_falls() -> None:
    stage = recipe({"steps": 100, "warmup": 10, "decay": 0.5}).stages[0]
    factors = [stage.learning_rate(step, step / 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1.0 and factors[75] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.02) and factors[50:] == sorted(factors[50:], reverse=True)


def test_lessons_take_their_shares_in_turn() -> None:
    lessons = [{"ratios": ["raw", 2], "share": 1}, {"ratios": [4], "share": 3}]
    stage = recipe({"lessons": lessons}).stages[0]
    assert [stage.lesson(p).ratios for p in (0.0, 0.24, 0.26, 1.0)] == [(None, 2), (None, 2), (4,), (4,)]


def test_a_setting_that_says_the_default_changes_no_fingerprint() -> None:
    assert settings_of(recipe({"clip": 1.0}).stages[0]) == settings_of(recipe().stages[0])
    assert settings_of(recipe({"clip": 2.0}).stages[0]) != settings_of(recipe().stages[0])


def test_every_recording_comes_once_a_pass_beside_others_of_its_size() -> None:
    sizes = [7 * i % 101 for i in range(101)]
    order = Order(sizes, batch=4, seed=1)
    batches = [order.batch(step) for step in range(26)]
    assert set(np.concatenate(batches).tolist()) == set(range(101))
    assert np.mean([np.ptp(np.array(sizes)[b]) for b in batches]) < 10
    again = Order(sizes, batch=4, seed=1)
    assert np.array_equal(again.batch(40), order.batch(40)) and np.array_equal(again.batch(3), batches[3])
    assert not np.array_equal(order.batch(26), batches[0])


@pytest.fixture
def four(tmp_path: Path) -> tuple[Samples, Prompt, ModelConfig]:
    """The recordings of TALKS, read one at a time."""
    model = hearing_checkpoint(tmp_path / "model", sst=recipe().sst)
    config = load_config(model)
    prompt = Prompt.load(model, config)
    hearing = Hearing(recipe().stages[0], model, config, prompt, tmp_path / "cache", Accelerator(cpu=True))
    paths = [write_lines(tmp_path / "l.jsonl", TALKS)]
    samples, left_out = index_samples(paths, scan_recordings(paths), hearing.sample, 40)
    assert left_out == 0 and len(samples) == 4
    return samples, prompt, config


def test_a_batch_holds_each_recordings_own_words_and_answers(four: tuple[Samples, Prompt, ModelConfig]) -> None:
    samples, prompt, config = four
    stage = recipe({"transcripts": 1.0}).stages[0]
    (batch,) = Batcher(prompt, config, stage, seed=0).training(samples, range(4), 5, 1.0, None)
    words = [[i for word in s.source.heard.split() for i in prompt.word_ids(word)[0]] for s in samples]
    wanted = [*prompt.text_ids("a b"), prompt.end_id, *prompt.text_ids("not mentioned"), prompt.end_id]
    targets = batch.targets.tolist()
    assert targets[: len(wanted)] == wanted
    plain = [t for t in targets if t != prompt.end_id]
    plain = plain[len(wanted) - 2 :]
    for i, asked in enumerate(([], [], None, prompt.text_ids("d"))):  # every interval's words, in order
        if asked is None:  # the long transcript was cut: a window of it
            assert " ".join(map(str, plain[:40])) in " ".join(map(str, words[i]))
            plain = plain[40:]
        else:
            assert plain[: len(asked) + len(words[i])] == asked + words[i]
            plain = plain[len(asked) + len(words[i]) :]
    assert plain == []
    assert batch.speech_tokens == len(batch.speech.rows) == sum(min(40, len(said)) for said in words)
    rows = len(prompt.prefix_ids) + batch.speech_tokens + batch.ssts + len(batch.text_ids)
    assert len(batch.rows) == len(batch.query_positions) == len(batch.key_positions) == rows
    assert {kind for kind, _ in batch.groups} == {"question", "absent", "transcript"}


def test_lines_are_read_again_from_where_they_are(tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in TALKS]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("\n" + "\n\n".join(lines))  # empty lines, none at the end
    second.write_bytes(
        ("\r\n".join([json.dumps({"heard": "caf\u00e9"}, ensure_ascii=False), *lines]) + "\r\n").encode()
    )
    paths = [first, second]
    found = list(scan_recordings(paths))
    assert len(found) == 4 + 5 and found == [(recording_at(paths, place), place) for _, place in found]
    assert [len(r.questions) for r, _ in found] == [2, 0, 0, 1, 0, 2, 0, 0, 1] and found[4][0].heard == "caf\u00e9"
    first.write_text("\n" * 3000)
    with pytest.raises(DataError, match="has changed since the training began"):
        recording_at(paths, found[0][1])
    first.unlink()
    with pytest.raises(DataError, match="leave the data alone"):
        recording_at(paths, found[0][1])
