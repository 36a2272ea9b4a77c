"""Evaluation: scores worked out by hand, data that is refused, and a run that a kill does not harm."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

import evaluation.cascade
import evaluation.run
from evaluation.__main__ import main
from evaluation.cascade import read_as_text, recognize, words_between
from evaluation.data import DataError, Item, read_data
from evaluation.metrics import choose, normalise, score_answer, token_f1, word_errors
from evaluation.report import make_rows, ratio_figure
from evaluation.results import CASCADE, Method, ResultsFile, Run
from evaluation.run import choose_methods, evaluate
from speech_xl.conversation import Listening, ask
from speech_xl.errors import ScheduleError
from speech_xl.memory import RecordingSource
from speech_xl.model import SpeechModel
from speech_xl.recognition import Word
from speech_xl.whole_file import hold_folder
from tests.tiny import save_checkpoint, tiny_config, tiny_recognizer_config, write_sound

SETTINGS = Run("tiny", "f", "torch", 16)


def test_normalise_keeps_letters_and_digits_and_drops_articles() -> None:
    assert normalise("The Bridge, an OLD one -- No. 7!") == "bridge old one no 7"
    assert normalise("A.") == "a"  # a choice may be an article
    assert normalise(" ...") == ""


def test_token_f1_is_that_of_squad() -> None:
    assert token_f1("the red red car", "a red car") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert token_f1("blue", "red") == 0 and token_f1("", "red") == 0


def test_word_errors_come_after_whispers_normaliser() -> None:
    # "he will not pay 21 dollars today": one word of six is missing and one is put in.
    assert word_errors("He won't pay twenty-one!", "He won't pay twenty-one today.") == (1, 6)
    assert word_errors("he will not pay 21 today now", "He won't pay twenty-one today.") == (1, 6)
    assert word_errors("", "two words") == (2, 2)
    assert word_errors("Um, two words", "two words") == (0, 2)  # Whisper's normaliser drops hesitation


def test_a_choice_is_taken_that_the_answer_equals_or_contains() -> None:
    choices = ("tea", "the green tea", "coffee")
    assert choose("Green tea.", choices) == 1  # equality goes before the earlier "tea", which it contains
    assert choose("I heard coffee, or tea", choices) == 0  # the first choice, not the first word
    assert choose("teapot", choices) is None


def test_what_was_not_said_is_scored_apart() -> None:
    assert score_answer("Not mentioned.", "not mentioned") == {"not_mentioned": (1, 1)}
    assert score_answer("red", "not mentioned") == {"not_mentioned": (0, 1)}
    assert score_answer("not mentioned", "red") == {"exact": (0, 1), "f1": (0, 1)}


def test_evidence_counts_among_right_answers_only() -> None:
    assert score_answer("Red", "red", (), (1, 2), (1.9, 5))["evidence"] == (1, 1)
    assert score_answer("Red", "red", (), (1, 2), (2.0, 5))["evidence"] == (0, 1)  # they touch, and do not overlap
    assert score_answer("Red", "red", (), (1, 2), None)["evidence"] == (0, 1)
    assert "evidence" not in score_answer("blue", "red", (), (1, 2), (1, 2))
    assert score_answer("tea", "Tea", ("tea", "milk"), (0, 1), (0, 1)) == {"choice": (1, 1), "evidence": (1, 1)}


def test_a_figure_sums_points_and_its_interval_is_over_recordings() -> None:
    figure = ratio_figure([[(1, 4), (1, 4)], [(6, 12)]])
    assert figure.value == 8 / 20 and (figure.items, figure.recordings) == (3, 2)
    assert figure.low == 0.25 and figure.high == 0.5  # a recording drawn twice: 2 of 8, or 6 of 12
    alone = ratio_figure([[(1, 1), (0, 1)]])
    assert (alone.value, alone.low, alone.high) == (0.5, None, None)


def line(**fields: object) -> str:
    return json.dumps({"audio": "a.wav", "question": "Who?", "answer": "Ann"} | fields)


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([], "no lines"),
        (["{"], "line 1: this is not JSON"),
        ([line(), '["a"]'], "line 2: this is not a JSON object"),
        ([line(audio=None)], 'no "audio"'),
        ([line(audio="gone.wav")], "no recording"),
        ([line(id="x"), line(id="x")], "2 lines have the id 'x'"),
        ([line(), line(id=1)], "2 lines have the id '1'"),
        ([line(question=None, answer=None)], "nothing to ask"),
        ([line(question=None, text="...")], "no words"),
        ([line(answer=None)], 'no "answer"'),
        ([line(answer="?")], "no letter"),
        ([line(answer=7)], "it must be some text"),
        ([line(choices=["Bob", "Eve"])], "none of the choices"),
        ([line(choices=["the Ann", "ann"])], "differ"),
        ([line(choices="Ann")], "a list"),
        ([line(start=1)], "end is None"),
        ([line(start=2, end=2)], "not after start"),
        ([line(start=0, end=float("nan"))], "end is nan"),
        ([line(start=0, end=10**400)], "end is 1000"),
        ([line(start=5, end=6)], "start 5 is after the recording's end at 0.1 s"),
        ([line(audio="x" * 5000)], "no recording"),
        ([line(audio="data.jsonl")], "line 1: .*data.jsonl is not a recording"),
        ([line(), line(kind="\ud800")], "line 2: there is an unpaired surrogate"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[str], wrong: str) -> None:
    write_sound(tmp_path / "a.wav", 0.1)
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=wrong):
        read_data(tmp_path / "data.jsonl")


def test_lines_of_a_recording_belong_together(tmp_path: Path) -> None:
    for name in "ab":
        write_sound(tmp_path / f"{name}.wav", 0.1)
    lines = [line(), line(audio="b.wav", choices=["Ann", "Bob"]), "", line(question=None, answer=None, text="Hello.")]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    first, second = read_data(tmp_path / "data.jsonl").recordings().values()
    assert [(i.id, i.kind) for i in first] == [("1", "question"), ("4", "transcript")]
    assert second[0].prompt == "Who? Choose one: Ann; Bob."


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """-> (a tiny checkpoint, five lines about two recordings)."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name in "ab":
        write_sound(folder / f"{name}.wav", 1.5, seed=ord(name))
    lines = [
        line(kind="who"),
        line(start=0, end=1),
        line(audio="b.wav"),
        line(audio="b.wav", answer="not mentioned"),
        line(audio="b.wav", question=None, text="a b c", kind="words"),
    ]
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return save_checkpoint(folder / "model", tiny_config()), folder / "data.jsonl"


def without_times(folder: Path) -> list[dict]:
    rows = [json.loads(row) for row in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def test_answers_are_scored_as_they_were_said(desk: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = SpeechModel.load(str(desk[0]), "torch"), read_data(desk[1])
    said = iter(["Ann!", "Bob", "ann and bob", "not mentioned", "a c"])
    real = evaluation.run.ask_item

    def scripted(model: SpeechModel, heard: object, item: object) -> tuple[str, tuple[float, float] | None]:
        real(model, heard, item)
        return next(said), (0.0, 0.5)

    monkeypatch.setattr(evaluation.run, "ask_item", scripted)
    results = ResultsFile(SETTINGS, None, data)
    for _ in evaluate(model, data, [Method("sst", 4)], results):
        pass
    (row,) = make_rows(data, [Method("sst", 4)], results)
    every = row.figures["all"]
    assert every["exact"].value == pytest.approx(1 / 3) and every["not_mentioned"].value == 1
    assert every["f1"].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert every["wer"].value == pytest.approx(1 / 3)
    assert "evidence" not in every  # the one right answer has no span
    assert row.figures["who"]["exact"].value == 1 and set(row.figures["words"]) == {"wer"}
    per_slot = model.bytes_per_slot
    tokens = model.config.tokens_for(24_000)
    slots = len(model.prompt.prefix_ids) + sum(-(-min(16, tokens - at) // 4) for at in range(0, tokens, 16))
    assert row.costs["all"].bytes_per_minute == pytest.approx(slots * per_slot / 1.5 * 60, rel=0.01)


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(
    desk: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = [
        str(desk[1]),
        "--model",
        str(desk[0]),
        "--backend",
        "torch",
        "--ratios",
        "raw",
        "4",
        "--summarizers",
        "sst",
        "stride",
    ]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    table = capsys.readouterr().out
    heard, real_hear, real_ask = [], evaluation.run.hear, evaluation.run.ask_item

    def stop_at_the_fourth(*arguments: object) -> object:
        asked.append(arguments)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real_ask(*arguments)

    def count(model: SpeechModel, audio: Path, method: Method) -> object:
        heard.append((method.label, audio.name))
        return real_hear(model, audio, method)

    asked: list[object] = []
    monkeypatch.setattr(evaluation.run, "hear", count)
    monkeypatch.setattr(evaluation.run, "ask_item", stop_at_the_fourth)
    stopped = tmp_path / "stopped"
    assert main([*command, "--output", str(stopped)]) == 130
    assert len(without_times(stopped)) == 3 and not (stopped / "report.md").exists()
    with open(stopped / "results.jsonl", "a", encoding="utf-8") as file:
        file.write('{"model": "tiny", "finger')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(evaluation.run, "ask_item", real_ask)
    heard.clear()
    capsys.readouterr()
    assert main([*command, "--output", str(stopped)]) == 0
    assert heard == [
        ("raw", "b.wav"),
        ("sst 4", "a.wav"),
        ("sst 4", "b.wav"),
        ("stride 4", "a.wav"),
        ("stride 4", "b.wav"),
    ]
    assert without_times(stopped) == without_times(tmp_path / "whole")
    figures = [[row.split("|")[1:-3] for row in text.splitlines()] for text in (capsys.readouterr().out, table)]
    assert figures[0] == figures[1]  # all but the times
    assert {f.name for f in stopped.glob("[!.]*")} == {"results.jsonl", "report.md", "report.csv", "accuracy.png"}
    assert (stopped / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    heard.clear()
    assert main([*command, "--output", str(stopped)]) == 0 and not heard  # nothing is left to hear


def test_results_of_another_run_are_refused_and_kept(
    desk: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def run(model: Path, *more: str) -> int:
        return main(
            [
                str(desk[1]),
                "--model",
                str(model),
                "--backend",
                "torch",
                "--ratios",
                "4",
                "--output",
                str(tmp_path),
                *more,
            ]
        )

    assert run(desk[0]) == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert run(save_checkpoint(tmp_path / "other", tiny_config(), seed=1)) == 2
    assert "of a model with other weights" in capsys.readouterr().err
    assert run(desk[0], "--memory-bits", "8") == 2
    assert "of another number of memory bits (16, now 8)" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == before
    lock = hold_folder(tmp_path, "evaluation")
    assert run(desk[0]) == 2 and "Another evaluation is at work" in capsys.readouterr().err
    lock.release()
    (tmp_path / "results.jsonl").write_bytes(before.replace(b'"bytes": ', b'"bytes": -0.'))
    assert run(desk[0]) == 2 and "line 1 is damaged" in capsys.readouterr().err
    (tmp_path / "results.jsonl").write_bytes(b"{}\n" + before)
    assert run(desk[0]) == 2 and "line 1 is damaged" in capsys.readouterr().err


def test_a_changed_line_or_recording_alone_is_asked_again(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked, real_ask = [], evaluation.run.ask_item

    def count(model: SpeechModel, heard: object, item: Item) -> object:
        asked.append((item.id, item.answer))
        return real_ask(model, heard, item)

    def run(*lines: str) -> str:
        asked.clear()
        (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
        words = [str(tmp_path / "data.jsonl"), "--model", str(tiny_checkpoint), "--ratios", "4"]
        assert main([*words, "--output", str(tmp_path / "out")]) == 0
        return (tmp_path / "out" / "report.md").read_text(encoding="utf-8")

    monkeypatch.setattr(evaluation.run, "ask_item", count)
    for name in "ab":
        write_sound(tmp_path / f"{name}.wav", 0.5, seed=ord(name))
    first, second, third = line(answer="Anm"), line(question="When?"), line(audio="b.wav")
    assert "not counted" not in run(first, second, third) and len(asked) == 3
    mended = line(answer="Ann Lee", note="was Anm")
    report = run(mended, second, third)
    assert asked == [("1", "Ann Lee")] and "its recording has changed or gone: 1." in report
    assert "not counted" in capsys.readouterr().err
    run(third, mended, second)  # another order, other numbers
    assert not asked
    write_sound(tmp_path / "b.wav", 0.5, seed=7)
    assert "changed or gone: 2." in run(third, mended, second) and asked == [("1", "Ann")]
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    (tmp_path / "data.jsonl").write_text(line(question="Why?"), encoding="utf-8")
    words = [str(tmp_path / "data.jsonl"), "--model", str(tiny_checkpoint), "--output", str(tmp_path / "out")]
    assert main(words) == 2 and "of other data" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_raw_is_one_method_whatever_the_summarizer(desk: tuple[Path, Path]) -> None:
    model = SpeechModel.load(str(desk[0]), "torch")
    methods = choose_methods(model, [4, None, 8], ["stride", "raw", "sst"])
    assert [m.label for m in methods] == ["raw", "stride 4", "stride 8", "sst 4", "sst 8"]
    with pytest.raises(ScheduleError):
        choose_methods(model, [5], ["sst"])


def test_the_cascade_reads_the_words_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation.cascade, "PIECE", 2)  # tokens: the text is read in several
    folder = save_checkpoint(tmp_path / "words", tiny_recognizer_config())
    model = SpeechModel.load(str(folder), "torch")
    words = [Word("a", 0.0, 0.4), Word("b", 0.5, 0.9), Word("h", 1.0, 1.2)]
    memory = read_as_text(model, words, RecordingSource("a.wav", 1.5, 1.5, ""))
    ids = [*model.prompt.prefix_ids, *model.prompt.text_ids("a b h")]
    assert memory.prefix == tuple(ids) and memory.bytes == len(ids) * model.bytes_per_slot
    assert (words_between(words, None), words_between(words, (0.4, 1.0))) == ("a b h", "b")
    # The decoder reads the text as if the question stood right behind it in one prompt.
    asking = ask(model, memory, "what drink is order 47?", longest=8)
    list(asking)
    whole = model.backend.answer(model.backend.start([]), ids + model.prompt.question_ids("what drink is order 47?"), 0)
    tokens = list(
        itertools.takewhile(lambda t: t not in model.prompt.end_ids, (s.token for s in itertools.islice(whole, 8)))
    )
    assert asking.answer.answer == model.prompt.decode(tokens) and not asking.answer.evidence

    write_sound(tmp_path / "a.wav", 1.5)
    heard, source = recognize(model, tmp_path / "a.wav")
    listening = Listening(model, tmp_path / "a.wav", ratio=None)
    assert [w.text for w in heard] == [w.text for event in listening for w in event.words]
    assert source == listening.memory.recording
    (tmp_path / "data.jsonl").write_text(line() + "\n" + line(question=None, answer=None, text="a b"), encoding="utf-8")
    command = [str(tmp_path / "data.jsonl"), "--backend", "torch", "--ratios", "4", "--cascade"]
    assert main([*command, "--model", str(folder), "--output", str(tmp_path / "out")]) == 0
    assert [row["name"] for row in without_times(tmp_path / "out")] == ["sst", "sst", CASCADE.name, CASCADE.name]
    capsys.readouterr()
    assert main([*command, "--model", str(save_checkpoint(tmp_path / "frames", tiny_config()))]) == 2
    assert "no recogniser" in capsys.readouterr().err
