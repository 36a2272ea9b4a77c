"""The small model's data: every answer stands in what was heard, absent ones do not, and validation is kept apart."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from evaluation.data import read_data
from recipes.small import make_order_data, make_talks, make_text_data
from recipes.small.facts import FactSource, is_held
from recipes.small.make_text_data import NOT_MENTIONED, Library, comparable, make_recording
from recipes.small.recogniser_text import Style, misheard, written

PLAIN = Style(digits_from=10, signs=True, short_titles=True, lower=False, punctuated=True, mistakes=0.0)


@pytest.fixture(scope="module")
def library():
    return Library(held=False, sources=())


def recordings(library, seed, count=60, spoken=False):
    return [make_recording(library, random.Random(f"{seed} {n}"), 30, 300, spoken) for n in range(count)]


def test_extractive_answers_stand_in_what_was_heard(library):
    kinds = set()
    for lines in recordings(library, 1):
        for line in lines:
            if line.get("kind") in ("said", "after", "quote", "first", "last"):
                kinds.add(line["kind"])
                assert comparable(line["answer"]) in comparable(line["heard"]), line
    assert kinds == {"said", "after", "quote", "first", "last"}


def test_absent_questions_are_not_asked_as_said(library):
    absent = 0
    for lines in recordings(library, 2):
        said = {line["question"] for line in lines if line.get("kind") == "said"}
        for line in lines:
            if line.get("kind") == "absent":
                absent += 1
                assert line["answer"] == NOT_MENTIONED and line["question"] not in said
    assert absent > 100


def test_word_questions_are_right(library):
    answers = set()
    for lines in recordings(library, 3):
        for line in lines:
            if line.get("kind") == "word":
                quoted = re.search(r"[\"'](\w+)[\"']|the word (\w+)\?", line["question"])
                answers.add(line["answer"])
                spoken = comparable(quoted[1] or quoted[2]) in comparable(line["heard"])
                assert spoken == (line["answer"] == "yes"), line
    assert answers == {"yes", "no"}


def test_lines_of_a_recording_follow_each_other_and_have_no_empty_answer(library):
    for lines in recordings(library, 4):
        assert len({line["heard"] for line in lines}) == 1
        assert all(line["answer"].strip() for line in lines if "question" in line)
        assert not any("{" in line["heard"] + line.get("question", "") for line in lines)


def test_same_seed_same_data(library):
    assert recordings(library, 5, 10) == recordings(library, 5, 10)
    assert recordings(library, 5, 10) != recordings(library, 6, 10)


def test_spoken_answers_differ_in_spelling_only(library):
    heard, spoken = recordings(library, 7), recordings(library, 7, spoken=True)
    different = 0
    for one, other in zip(heard, spoken, strict=True):
        assert [line.get("question") for line in one] == [line.get("question") for line in other]
        different += sum(a.get("answer") != b.get("answer") for a, b in zip(one, other, strict=True))
    assert different > 10


def test_held_templates_and_names_are_never_in_training():
    train, held = FactSource(held=False), FactSource(held=True)
    assert not {t["say"][0] for t in train.templates} & {t["say"][0] for t in held.templates}
    assert not set(train.verbs) & set(held.verbs) and not set(train.fillers) & set(held.fillers)
    for name in ("first", "last"):
        assert train.lists[name] and held.lists[name]
        assert not set(train.lists[name]) & set(held.lists[name])
    assert 0.05 < len(held.templates) / len(train.templates) < 0.2
    rng = random.Random(0)
    assert not any(is_held(train.from_template(rng.choice(train.templates), rng).template) for _ in range(200))


def test_every_template_can_be_filled_and_answered_from_its_sentence():
    rng = random.Random(0)
    for held in (False, True):
        source = FactSource(held)
        for template in source.templates:
            fact = source.from_template(template, rng)
            assert "{" not in fact.sentence
            for asked in fact.asked:
                assert comparable(asked.answer) in comparable(fact.sentence), (fact.sentence, asked)


def test_grammar_answers_stand_in_the_sentence():
    rng, source = random.Random(1), FactSource()
    for _ in range(500):
        fact = source.from_grammar(rng)
        questions = {comparable(w) for asked in fact.asked for w in asked.wordings}
        for asked in fact.asked:
            assert comparable(asked.answer) in comparable(fact.sentence), (fact.sentence, asked)
        assert not questions & set(map(comparable, fact.absent)), fact


@pytest.mark.parametrize(
    "said, heard",
    [
        ("two million dollars", "$2 million"),
        ("nine hundred thousand dollars", "$900,000"),
        ("nineteen eighty-four", "1984"),
        ("between nineteen ten and twenty seventeen", "between 1910 and 2017"),
        ("nineteen oh five", "1905"),
        ("seven in the evening", "7 in the evening"),
        ("three dogs and fifteen cats", "three dogs and 15 cats"),
        ("the twenty-first of May", "the 21st of May"),
        ("thirty-five percent", "35%"),
        ("a hundred and five", "105"),
        ("Doctor Reed", "Dr. Reed"),
        ("half past two", "half past two"),
        ("one of them", "one of them"),
    ],
)
def test_numbers_are_written_as_whisper_writes_them(said, heard):
    assert written(said, PLAIN) == heard


def test_mistakes_leave_answers_alone():
    style = Style(10, True, True, False, True, mistakes=1.0)
    text = "For the soup you need Kowalski, their son and a little of the sea salt."
    for seed in range(20):
        changed = misheard(text, ["Kowalski, their son"], style, random.Random(seed))
        assert "Kowalski, their son" in changed and changed != text


WINDOW = {
    "split": "train",
    "round": 0,
    "window": 0,
    "orders": [
        {"number": 12, "name": "a.flac", "slots": {"coffeeDrink": "latte"}},
        {"number": 47, "name": "b.flac", "slots": {"coffeeDrink": "mocha", "size": "eight ounce"}},
        {"number": 5, "name": "c.flac", "slots": {"coffeeDrink": "espresso"}},
    ],
    "heard": "Can I have a latte? 4, 7. Make me an 8 ounce mocha. Zero five. I'd like an espresso please.",
}


def test_orders_are_cut_where_their_numbers_were_heard():
    cut = make_order_data.cut_window(WINDOW)
    assert sorted(cut) == [5, 47]  # the first number was not heard, so its order cannot be asked for
    assert make_order_data.tell(cut[47], 30) == "3, 0. Make me an 8 ounce mocha."
    assert make_order_data.tell(cut[5], 68) == "Six eight. I'd like an espresso please."


def test_order_answers_are_the_slots_of_the_number_asked_for():
    for lines in make_order_data.make_recordings([WINDOW], 30, seed=1):
        for line in lines:
            if line["kind"] in make_order_data.QUESTIONS:
                assert line["answer"] in ("mocha", "eight ounce", "espresso")
            elif line["kind"] == "absent":
                assert line["answer"] == make_order_data.NOT_MENTIONED
            else:
                assert comparable(line["answer"]) in comparable(line["heard"])
    once, again = (list(make_order_data.make_recordings([WINDOW], 3, seed=1)) for _ in range(2))
    assert once == again


def test_split_of_orders_is_the_one_of_the_order_desk():
    from recipes.small.hear_orders import HELD_VOICE, is_held_order

    assert HELD_VOICE == "yweweler"
    assert [n for n in range(24) if is_held_order(f"{n}.flac")] == [3, 14, 23]


def test_command_writes_json_lines(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    monkeypatch.setattr("sys.argv", ["make", "--output", str(path), "--count", "3", "--sources"])
    make_text_data.main()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"heard", "question", "answer", "kind"} == set(lines[0])


@pytest.mark.skipif(not (shutil.which("espeak-ng") and shutil.which("flite")), reason="needs espeak-ng and flite")
def test_talks_are_lines_that_the_evaluation_reads(tmp_path: Path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        assert make_talks.main([str(folder), "--talks", "2", "--minutes", "0.4", "--needles", "1"]) == 0
    items = read_data(folders[0] / "talks.jsonl").items
    assert {item.kind for item in items} == {"said", "absent", "transcript"} and len(
        {item.audio for item in items}
    ) == 2
    spoken = {item.audio: comparable(item.text) for item in items if item.text is not None}
    for item in items:
        if item.kind == "said":  # the answer stands in what is said, and its sentence within the recording
            assert comparable(item.answer) in spoken[item.audio] and item.span[1] - item.span[0] > 0.5
    (needle,) = read_data(folders[0] / "needles.jsonl").items
    assert needle.question and needle.span[0] == 0
    files = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]  # the same seed, the same talks
