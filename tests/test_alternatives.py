"""All alternatives in one run: lettered choices, every summarizer, costs of each kind, and where the cascade wins."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation import run
from evaluation.__main__ import main
from evaluation.alternatives import compare, where_cascade_wins
from evaluation.data import Data, DataError, Item, read_data
from evaluation.metrics import choose, score_answer
from evaluation.report import ALL, as_csv, make_rows, table
from evaluation.results import CASCADE, RAW, Method, Result, ResultsFile, Run
from evaluation.run import check_questions, choose_methods
from speech_xl.model import SpeechModel
from tests.tiny import save_checkpoint, tiny_config, tiny_recognizer_config, write_sound

SST = Method("sst", 8)
CHOICES, LETTERS = ("stone", "the steel", "wood"), ("A", "B", "C")


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("B", 1),
        ("b", 1),
        (" (C). ", 2),
        ("B. steel", 1),
        ("C: stone", 2),
        ("The answer is B.", 1),
        ("Answer: C", 2),
        ("option A", 0),
        ("Steel.", 1),
        ("A steel bridge", 1),
        ("it was wood", 2),
        ("D", None),
        ("", None),
        ("bridge", None),
    ],
)
def test_a_choice_is_taken_by_its_letter_or_its_text(said: str, taken: int | None) -> None:
    assert choose(said, CHOICES, LETTERS) == taken


def test_a_letter_wins_over_a_text_and_means_nothing_where_choices_have_none() -> None:
    assert choose("B", ("B", "A"), ("A", "B")) == 1 and choose("B", ("B", "A")) == 0
    assert choose("", ("?", "!"), ("A", "B")) is None  # choices without words are told apart by letters alone
    assert score_answer("b)", "B", CHOICES, letters=LETTERS) == {"choice": (1, 1)}
    assert score_answer("wood", "B", CHOICES, letters=LETTERS) == {"choice": (0, 1)}


def question(**fields: object) -> str:
    return json.dumps({"audio": "a.wav", "question": "Of what?", "answer": "B"} | fields)


def test_lettered_choices_are_read(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", 0.1)
    choices = dict(zip(LETTERS, CHOICES, strict=True))
    path = tmp_path / "data.jsonl"
    path.write_text(question(choices=choices) + "\n" + question(choices=choices, answer="Stone!"), encoding="utf-8")
    first, second = read_data(path).items
    assert (first.answer, second.answer, first.letters, first.choices) == ("B", "A", LETTERS, CHOICES)
    assert first.prompt == "Of what?\nA. stone\nB. the steel\nC. wood\nAnswer with the letter alone."
    for wrong, fields in {
        "none of the choices": {"choices": choices, "answer": "D"},
        "two letters or more": {"choices": {"A": "stone"}},
        "A to Z": {"choices": {"A": "stone", "second": "wood"}},
        "each with its text": {"choices": {"A": "stone", "B": 7}},
    }.items():
        path.write_text(question(**fields), encoding="utf-8")
        with pytest.raises(DataError, match=wrong):
            read_data(path)


def test_kinds_are_chosen_and_missing_recordings_left_out(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", 0.1)
    path = tmp_path / "data.jsonl"
    left_out = [question(kind="who", audio=name) for name in ("gone.wav", "data.jsonl")]  # the latter is no recording
    path.write_text("\n".join([question(), question(kind="who"), *left_out]), encoding="utf-8")
    some = read_data(path, ["who"], skip_missing=True)
    assert ([item.id for item in some.items], some.missing) == (["2"], 2)
    assert some.lines == read_data(path, skip_missing=True).lines  # results of some kinds stay good for all
    with pytest.raises(DataError, match="there is no recording"):
        read_data(path, ["who"])
    assert len(read_data(path, ["question"]).items) == 1  # what is not asked need not be there
    with pytest.raises(DataError, match="no line of the kind 'what'; choose of question, who"):
        read_data(path, ["what"])


def test_every_summarizer_of_a_model(tmp_path: Path, tiny_speech_model: SpeechModel) -> None:
    labels = [method.label for method in choose_methods(tiny_speech_model, [4], ["all"])]
    assert labels == ["raw", "sst 4", "stride 4", "pool 4", "window 4", "attention 4"]
    untrained = save_checkpoint(tmp_path / "untrained", tiny_config(sst__trained=False))
    labels = [method.label for method in choose_methods(SpeechModel.load(str(untrained), "torch"), [4], ["all"])]
    assert labels == ["raw", "stride 4", "pool 4", "window 4", "attention 4"]


def test_a_question_that_cannot_be_asked_is_said_at_once(tmp_path: Path, tiny_speech_model: SpeechModel) -> None:
    data = Data((Item("7", tmp_path, "question", "?" * 5000, "a"),), frozenset())
    with pytest.raises(DataError, match="id '7' cannot be asked: The question has 5000 characters"):
        check_questions(tiny_speech_model, data)


def run_of(points: dict[Method, list[list[int]]], sizes: dict[Method, int]) -> tuple[Data, ResultsFile]:
    """Answers of each method: right or not, a list a recording; the last answer of each is a transcript with errors."""
    results, items = ResultsFile(Run("m", "f", "b", 16), None, Data((), frozenset())), {}
    for method, recordings in points.items():
        for number, answers in enumerate(recordings):
            for place, count in enumerate(answers):
                is_last = place == len(answers) - 1
                kind, metric, most = ("transcript", "wer", 10.0) if is_last else ("question", "exact", 1.0)
                name = f"{number}/{place}"
                items[name] = Item(name, Path(f"{number}.wav"), kind)
                results.add(
                    Result(
                        method,
                        name,
                        f"{number}.wav",
                        kind,
                        "",
                        {metric: (float(count), most)},
                        None,
                        60.0,
                        sizes[method],
                        1.0 + number,
                        0.5 + 4 * is_last,
                    )
                )
    return Data(tuple(items.values()), frozenset()), results


def test_where_the_cascade_wins_is_said_with_bytes() -> None:
    # Questions: right in all of six recordings against one in each three; transcripts: 2 of 10 words against none.
    points = {
        RAW: [[1, 0, 0]] * 3 + [[0, 1, 0]] * 3,
        SST: [[0, 0, 5]] * 6,
        CASCADE: [[1, 1, 2]] * 6,
    }
    data, results = run_of(points, {RAW: 4096, SST: 512, CASCADE: 1024})
    rows = make_rows(data, list(points), results)
    found = {(c.kind, c.metric): c for c in compare(rows[2], rows[:2], data, results)}
    assert set(found) == {(ALL, "exact"), (ALL, "wer"), ("question", "exact"), ("transcript", "wer")}
    exact, wer = found["question", "exact"], found["transcript", "wer"]
    assert (exact.gain, exact.is_clear, exact.method, exact.bytes_ratio) == (0.5, True, RAW, 4)
    assert (round(wer.gain, 3), wer.is_clear, wer.memory.value) == (-0.2, True, 0)
    said = where_cascade_wins(rows, data, results)
    assert said.startswith(
        "Against the best memory of this run, the cascade wins in exact match of all lines (1.000 against 0.500 of raw, "
        "which takes 4 times its bytes); exact match of question (1.000 against 0.500"
    )
    assert "It loses in word error rate of all lines (0.200 against 0.000 of raw" in said
    assert (
        "Against the best memory that takes no more bytes than it, the cascade wins in exact match of all lines (1.000 "
        "against 0.000 of sst 8, which takes 0.5 times its bytes); word error rate of all lines (0.200 against 0.500"
    ) in said


def test_a_difference_that_one_recording_makes_is_not_clear() -> None:
    points = {RAW: [[1, 0], [0, 0], [0, 0]], CASCADE: [[0, 0], [1, 0], [1, 0]]}
    data, results = run_of(points, {RAW: 512, CASCADE: 1024})
    rows = make_rows(data, list(points), results)
    said = where_cascade_wins(rows, data, results)
    assert said.startswith(
        "Against the best memory of this run, the cascade wins nowhere clearly. It is ahead, though not"
    )
    assert "It is equal in word error rate of all lines (0.000 against 0.000 of raw" in said
    assert "no more bytes" not in said  # all memories are as small
    alone, results = run_of({RAW: [[1, 0]], CASCADE: [[0, 0]]}, {RAW: 2048, CASCADE: 1024})
    said = where_cascade_wins(make_rows(alone, [RAW, CASCADE], results), alone, results)
    assert "It is behind, though not clearly, in exact match" in said  # one recording has no interval
    assert said.endswith("No memory of this run takes as few bytes as the cascade.\n")
    assert where_cascade_wins(make_rows(alone, [CASCADE], results), alone, results) == ""


def test_the_cascade_is_not_judged_by_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ask_item", lambda *_: ("stone", None))
    memory = SimpleNamespace(seconds=9.0, bytes=512, recording=SimpleNamespace(sha256=""))
    item = Item("1", Path("a.wav"), "question", answer="stone", span=(1.0, 2.0))
    scores = {
        method: run.answer(None, run.Heard(memory, 1.0), item, method).scores
        for method in (RAW, CASCADE)  # type: ignore[arg-type]
    }
    assert scores[RAW]["evidence"] == (0.0, 1.0) and scores[RAW]["exact"] == scores[CASCADE]["exact"] == (1.0, 1.0)
    assert "evidence" not in scores[CASCADE]


def test_costs_stand_beside_each_kind() -> None:
    data, results = run_of({RAW: [[1, 0], [0, 0]], CASCADE: [[1, 0], [0, 0]]}, {RAW: 1024, CASCADE: 2048})
    rows = make_rows(data, [RAW, CASCADE], results)
    assert (rows[0].costs["question"].answer_seconds, rows[0].costs["transcript"].answer_seconds) == (0.5, 4.5)
    assert "| 1 | 45.0 | 4.50 |" in table(rows, "transcript") and "| 1 | 45.0 | 0.50 |" in table(rows, "question")
    ratios = {line.split(",")[0]: line.split(",")[1] for line in as_csv(rows).splitlines()[1:]}
    assert ratios == {"raw": "raw", "cascade": ""}


def test_one_command_compares_all(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = save_checkpoint(tmp_path / "words", tiny_recognizer_config())
    for name in "ab":
        write_sound(tmp_path / f"{name}.wav", 0.8, seed=ord(name))
    lines = [question(audio=f"{name}.wav", id=f"{name}{n}") for name, n in itertools.product("ab", range(2))]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = [
        str(tmp_path / "data.jsonl"),
        "--model",
        str(folder),
        "--backend",
        "torch",
        "--ratios",
        "raw",
        "4",
        "--summarizers",
        "all",
        "--cascade",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    methods = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][1:]
    assert methods == ["raw", "sst 4", "stride 4", "pool 4", "window 4", "attention 4", "cascade"]
    assert "Against the best memory of this run, the cascade" in printed
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Against the best memory of this run, the cascade" in report and "| cascade |" in report


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([question(audio="gone.wav")], "there is no recording"),
        ([question(id="x"), question(id="x")], "2 lines have the id 'x'"),
        ([question(choices=["stone", "wood"])], "none of the choices"),
    ],
)
def test_bad_data_is_one_sentence_and_harms_nothing(
    lines: list[str], wrong: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    write_sound(tmp_path / "a.wav", 0.5)
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    command = [str(data), "--model", str(tiny_checkpoint), "--ratios", "4", "--output", str(out)]
    data.write_text(question(), encoding="utf-8")
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    data.write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr()
    assert wrong in said.err and said.err.count("\n") == 1 and not said.out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
