"""The needle grid: recordings composed while they are heard, cells worked out by hand, and a run that goes on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import evaluation.run
from evaluation.data import DataError
from evaluation.needle.__main__ import main
from evaluation.needle.grid import make_grid
from evaluation.needle.recording import PAUSE, NeedleRecording, read_needle
from evaluation.needle.report import cell, repeated, right_answers
from evaluation.results import Method, Result, ResultsFile, Run
from speech_xl.audio import AudioReader
from speech_xl.config import SAMPLING_RATE
from speech_xl.conversation import Listening
from speech_xl.model import SpeechModel
from tests.tiny import write_sound


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 1.5 s of speech in two recordings, one of them at another rate, and a text."""
    folder = tmp_path_factory.mktemp("speech")
    write_sound(folder / "a.wav", 1.0, seed=1)
    (folder / "chapter").mkdir()
    write_sound(folder / "chapter" / "b.flac", 0.5, seed=2, rate=8000)
    (folder / "a.txt").write_text("no sound")
    return folder


@pytest.fixture(scope="module")
def needles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions about one short recording."""
    folder = tmp_path_factory.mktemp("needle")
    write_sound(folder / "needle.wav", 0.4, seed=3)
    lines = [
        {"audio": "needle.wav", "question": "Who?", "answer": "Ann"},
        {
            "audio": "needle.wav",
            "question": "Which?",
            "answer": "B",
            "choices": {"A": "tea", "B": "milk"},
            "start": 0.1,
            "end": 0.3,
        },
    ]
    (folder / "needles.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder / "needles.jsonl"


def heard(recording: NeedleRecording, block_seconds: float = 5.0) -> np.ndarray:
    return np.concatenate(list(AudioReader(recording, block_seconds)))


@pytest.mark.parametrize("depth", [0, 37.5, 100])
def test_a_recording_holds_speech_and_the_needle_at_its_place(speech: Path, needles: Path, depth: float) -> None:
    grid = make_grid(needles, speech, [3.0], [depth])
    item = grid.data.items[0]
    needle = read_needle(needles.parent / "needle.wav")
    samples = heard(item.audio)
    assert len(samples) == 3 * SAMPLING_RATE
    start = PAUSE + round((3 * SAMPLING_RATE - len(needle) - 2 * PAUSE) * depth / 100)
    assert item.audio.start == start and item.span == (start / SAMPLING_RATE, (start + len(needle)) / SAMPLING_RATE)
    assert np.array_equal(samples[start : start + len(needle)], needle)
    assert not samples[start - PAUSE : start].any() and not samples[start + len(needle) :][:PAUSE].any()
    around = np.concatenate([samples[: start - PAUSE], samples[start + len(needle) + PAUSE :]])
    once = np.concatenate([heard_file(path) for path in item.audio.speech])
    assert np.array_equal(around, np.resize(once, len(around)))  # from its start again when it is over
    assert repeated(grid).startswith("There are 0:01 of speech")


def heard_file(path: Path) -> np.ndarray:
    return np.concatenate(list(AudioReader(path)))


def test_a_recording_is_composed_as_it_is_heard(speech: Path, needles: Path) -> None:
    five_hours = make_grid(needles, speech, [5 * 3600.0], [100]).data.items[0].audio
    with AudioReader(five_hours) as reader:
        assert reader.info.seconds == 5 * 3600
        first = list(itertools.islice(reader, 2))  # no more than these is ever made
    assert [len(block) for block in first] == [5 * SAMPLING_RATE] * 2 and reader.samples_read == 10 * SAMPLING_RATE
    short = make_grid(needles, speech, [3.0], [50]).data.items[0].audio
    assert np.array_equal(heard(short, 0.1), heard(short))  # the same in blocks of any length


def test_a_recording_is_heard_as_its_file_would_be(
    speech: Path, needles: Path, tmp_path: Path, tiny_speech_model: SpeechModel
) -> None:
    recording = make_grid(needles, speech, [3.0], [50]).data.items[0].audio
    soundfile.write(tmp_path / "whole.wav", heard(recording), SAMPLING_RATE, subtype="FLOAT")
    memories = []
    for source in (recording, tmp_path / "whole.wav"):
        listening = Listening(tiny_speech_model, source, ratio=4)
        assert [event.seconds for event in listening][-1] == pytest.approx(3, abs=0.05)
        memories.append(listening.memory)
    ours, whole = (list(tiny_speech_model.backend.export_memory(m.state).values()) for m in memories)
    assert all(np.array_equal(a, b) for a, b in zip(ours, whole, strict=True))
    assert (
        memories[0].recording.sha256 == recording.sha256 and memories[0].recording.path == "needle.wav at 50 % of 3 s"
    )


def test_a_needle_has_the_same_speech_at_every_depth_and_names_its_span(speech: Path, needles: Path) -> None:
    grid = make_grid(needles, speech, [4.0, 3.0, 3.0], [100, 0])
    assert (grid.lengths, grid.depths) == ((3.0, 4.0), (0, 100))
    assert grid.cells[3.0, 100] == ["1 at 100 % of 3 s", "2 at 100 % of 3 s"]
    first = [item for item in grid.data.items if item.id.startswith("1 ")]
    assert len(first) == 4 and len({item.audio.speech for item in first}) == 1
    assert len(grid.data.recordings()) == 4  # questions about one needle share its recordings, which are heard once
    assert {item.kind for item in first} == {"0:03", "0:04"}
    second = next(item for item in grid.data.items if item.id == "2 at 0 % of 3 s")
    assert second.span == pytest.approx((0.5 + 0.1, 0.5 + 0.3)) and second.letters == ("A", "B")
    more = make_grid(needles, speech, [3.0, 60.0], [0, 50])
    assert more.data.lines == grid.data.lines  # results of a smaller grid stay good
    other = speech / "chapter"
    assert make_grid(needles, other, [3.0], [0]).data.lines.isdisjoint(grid.data.lines)


def test_cells_are_shares_of_right_answers(speech: Path, needles: Path) -> None:
    grid = make_grid(needles, speech, [3.0, 4.0], [0, 100])
    results, method = ResultsFile(Run("m", "f", "b", 16), None, grid.data), Method("sst", 4)
    for item in grid.data.items:
        is_right = item.id in ("1 at 0 % of 3 s", "2 at 0 % of 3 s", "2 at 100 % of 4 s")
        scores = {"choice" if item.letters else "exact": (float(is_right), 1.0)}
        if is_right:
            scores["evidence"] = (float(item.kind == "0:03"), 1.0)
        results.add(Result(method, item.id, item.audio.name, item.kind, "", scores, None, 3.0, 1, 1.0, 1.0))
    assert right_answers(grid, method, results).tolist() == [[1.0, 0.0], [0.0, 0.5]]  # depth by length
    assert cell(results.of(method, grid.cells[3.0, 0]), ["evidence"]) == 1
    assert np.isnan(cell(results.of(method, grid.cells[3.0, 100]), ["evidence"]))


def test_a_stopped_grid_goes_on_and_may_grow(
    speech: Path,
    needles: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def run(*more: str) -> int:
        return main(
            [
                str(needles),
                "--speech",
                str(speech),
                "--model",
                str(tiny_checkpoint),
                "--backend",
                "torch",
                "--ratios",
                "raw",
                "4",
                "--depths",
                "0",
                "100",
                *more,
            ]
        )

    asked, real_ask = [], evaluation.run.ask_item

    def stop_at_the_third(*arguments: object) -> object:
        asked.append(arguments)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real_ask(*arguments)

    monkeypatch.setattr(evaluation.run, "ask_item", stop_at_the_third)
    assert run("--lengths", "2", "--output", str(tmp_path)) == 130
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert run("--lengths", "2", "--output", str(tmp_path)) == 0 and len(asked) == 3 + 6
    assert run("--lengths", "2", "0:03", "--output", str(tmp_path)) == 0 and len(asked) == 3 + 6 + 8
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"results.jsonl", "report.md", "report.csv", "needle.png"}
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| depth | 0:02 | 0:03 |" in report and "## sst 4" in report and "### 0:03" in report
    rows = (tmp_path / "report.csv").read_text().splitlines()
    assert rows[0] == "method,ratio,length_seconds,depth_percent,right,f1,evidence,needles" and len(rows) == 1 + 2 * 4
    before = (tmp_path / "results.jsonl").read_bytes()
    capsys.readouterr()
    assert (
        main(
            [
                str(needles),
                "--speech",
                str(speech / "chapter"),
                "--model",
                str(tiny_checkpoint),
                "--ratios",
                "4",
                "--lengths",
                "2",
                "--output",
                str(tmp_path),
            ]
        )
        == 2
    )
    assert "is of other data" in capsys.readouterr().err and (tmp_path / "results.jsonl").read_bytes() == before


def test_a_grid_that_cannot_be_made_is_refused(speech: Path, needles: Path, tmp_path: Path) -> None:
    def refuse(
        wrong: str, needles: Path = needles, folder: Path = speech, length: float = 3.0, depth: float = 0
    ) -> None:
        with pytest.raises(DataError, match=wrong):
            make_grid(needles, folder, [length], [depth])

    refuse("101 is no depth", depth=101)
    refuse("nan is no depth", depth=float("nan"))
    refuse("at least 1.4 s", length=1.3)
    refuse("is no folder", folder=needles)
    refuse("has no recordings other than the needles", folder=needles.parent)
    write_sound(tmp_path / "a.wav", 0.3)
    (tmp_path / "text.jsonl").write_text('{"audio": "a.wav", "text": "hello"}', encoding="utf-8")
    refuse("a line without a question", needles=tmp_path / "text.jsonl")
    (tmp_path / "gone.jsonl").write_text('{"audio": "b.wav", "question": "Who?", "answer": "Ann"}', encoding="utf-8")
    refuse("there is no recording", needles=tmp_path / "gone.jsonl")


def test_bad_words_on_the_command_line_are_one_sentence(
    speech: Path, needles: Path, capsys: pytest.CaptureFixture
) -> None:
    for words, wrong in ((["--lengths", "soon"], "'soon' is not a time"), (["--depths", "-1"], "-1 is no depth")):
        assert main([str(needles), "--speech", str(speech), *words]) == 2
        assert wrong in capsys.readouterr().err
