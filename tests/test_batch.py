"""`speech-xl batch`: what it writes, that nothing is done twice, and that a stop at any moment loses nothing."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech_xl.batch import results, work
from speech_xl.cli import main
from speech_xl.commands import batch
from speech_xl.memory import read_header
from tests.test_cli import refused
from tests.tiny import save_checkpoint, tiny_recognizer_config, write_sound

QUESTIONS = ["what is order 4?", "and order 5?"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two recordings, one that is none, and a text beside them."""
    folder = tmp_path / "talks"
    (folder / "day1").mkdir(parents=True)
    write_sound(folder / "day1" / "one.wav", 2.5, seed=1)
    write_sound(folder / "two.wav", 3.0, seed=2)
    (folder / "bad.wav").write_text("this is no sound")
    (folder / "notes.txt").write_text("read me")
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS))
    return folder


@pytest.fixture
def run(tiny_checkpoint: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    def call(*words: object, source: Path = corpus, output: str = "out") -> tuple[int, str, str]:
        model = ["--model", tiny_checkpoint, "--backend", "torch", "--max-tokens", 6]
        code = main([str(w) for w in ("batch", source, "--output", tmp_path / output, *model, *words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def ask_all(run, tmp_path: Path):
    return lambda *words, **options: run("--questions", tmp_path / "questions.txt", *words, **options)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_folder_is_heard_asked_and_written_down(ask_all, tmp_path: Path) -> None:
    code, out, err = ask_all("--transcribe")
    assert code == 0 and "2 of 3 recordings heard, 4 answers, 1 skipped" in out
    assert "skipped bad.wav" in err and "notes.txt" not in err and "real time" in err
    lines = lines_of(tmp_path / "out")
    assert [(line["recording"], line["kind"]) for line in lines] == [
        ("bad.wav", "skipped"),
        *[("two.wav", kind) for kind in ("memory", "transcript", "answer", "answer")],
        *[("day1/one.wav", kind) for kind in ("memory", "transcript", "answer", "answer")],
    ]
    assert "export it again" in lines[0]["reason"]
    assert [line["question"] for line in lines if line["kind"] == "answer"] == QUESTIONS * 2
    memory = next(line for line in lines if line["recording"] == "day1/one.wav")
    header = read_header(tmp_path / "out" / memory["file"])
    assert header.recording.sha256 == memory["sha256"] and memory["seconds_heard"] == 2.5
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".lock", "batch.json", "memories", "results.jsonl"]


def test_answers_are_those_of_ask(ask_all, corpus: Path, tmp_path: Path, tiny_checkpoint: Path, capsys) -> None:
    ask_all()
    model = ["--model", str(tiny_checkpoint), "--backend", "torch", "--max-tokens", "6", "--json"]
    assert main(["ask", str(corpus / "two.wav"), *QUESTIONS, *model]) == 0
    told = json.loads(capsys.readouterr().out)["answers"]
    answers = [line for line in lines_of(tmp_path / "out") if line["recording"] == "two.wav"][1:]
    assert [{name: line[name] for name in told[0]} for line in answers] == told


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Everything that is heard, asked or read back from here on."""
    calls: list[tuple[str, ...]] = []

    def noted(name: str, describe) -> None:
        original = getattr(work, name)

        def call(*arguments, **options):
            calls.append((name, *describe(*arguments)))
            return original(*arguments, **options)

        monkeypatch.setattr(work, name, call)

    noted("Listening", lambda model, path, *_: (path.name,))
    noted("ask_together", lambda model, memory, questions, *_: (memory.recording.path, *questions))
    noted("transcribe", lambda model, memory: (memory.recording.path,))
    return calls


def test_a_finished_batch_does_nothing_again(ask_all, tmp_path: Path, done: list) -> None:
    ask_all()
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    done.clear()
    (tmp_path / "talks" / "two.wav").touch()  # another time, the same bytes
    assert ask_all()[0] == 0
    assert done == [("Listening", "bad.wav")]  # what could not be heard may have been mended
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_more_questions_are_asked_of_the_memories(ask_all, run, tmp_path: Path, done: list) -> None:
    ask_all()
    done.clear()
    (tmp_path / "more.txt").write_text(f"{QUESTIONS[1]}\nhow many?")
    code, out, _ = run("--questions", tmp_path / "more.txt", "--transcribe")
    assert code == 0 and "4 answers" in out
    asked = [("two.wav", "how many?"), ("one.wav", "how many?")]
    assert [call[1:] for call in done if call[0] == "ask_together"] == asked
    assert [call for call in done if call[0] == "Listening"] == [("Listening", "bad.wav")]
    assert {line.get("question") for line in lines_of(tmp_path / "out")} == {None, *QUESTIONS, "how many?"}


def test_a_recording_that_changed_is_heard_anew(ask_all, corpus: Path, tmp_path: Path, done: list) -> None:
    ask_all()
    done.clear()
    write_sound(corpus / "two.wav", 2.0, seed=9)
    (tmp_path / "out" / "memories" / "day1" / "one.wav.sxl").unlink()  # nothing is left to ask of that one
    ask_all()
    assert [call[1] for call in done if call[0] == "Listening"] == ["bad.wav", "two.wav"]
    lines = [line for line in lines_of(tmp_path / "out") if line["recording"] == "two.wav"]
    assert [line["kind"] for line in lines] == ["memory", "answer", "answer"] and lines[0]["seconds_heard"] == 2.0


def test_a_damaged_memory_is_heard_anew(ask_all, run, tmp_path: Path, done: list) -> None:
    ask_all()
    done.clear()
    (tmp_path / "out" / "memories" / "two.wav.sxl").write_bytes(b"broken")
    assert run("--transcribe")[0] == 0
    assert [call[1] for call in done if call[0] == "Listening"] == ["bad.wav", "two.wav"]
    assert read_header(tmp_path / "out" / "memories" / "two.wav.sxl").recording.path == "two.wav"


def test_a_stop_at_any_moment_loses_and_repeats_nothing(
    ask_all, tmp_path: Path, done: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_all("--transcribe", output="whole")
    whole = (tmp_path / "whole" / "results.jsonl").read_bytes()
    original, is_over, stop = batch.work_here, False, 0

    def stopped(*arguments) -> Iterator:
        nonlocal is_over
        for number, event in enumerate(original(*arguments)):
            if number == stop:  # made, and its memory file written, but not kept
                raise KeyboardInterrupt
            yield event
        is_over = True

    while not is_over:
        output = f"out{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(batch, "work_here", stopped)
            code, _, err = ask_all("--transcribe", output=output)
        if is_over:
            break
        assert code == 130 and "run the same command again" in err
        path = tmp_path / output / "results.jsonl"
        kept = path.read_bytes() if path.exists() else b""
        if kept:  # and a kill in the middle of a line
            path.write_bytes(kept + b'{"kind": "answer", "recor')
        left = tmp_path / output / "memories" / f".{'0' * 32}.0"
        left.mkdir(parents=True, exist_ok=True)
        (left / "two.wav.sxl").write_bytes(b"half")
        known = [json.loads(line) for line in kept.splitlines()]
        done.clear()
        assert ask_all("--transcribe", output=output)[0] == 0
        assert path.read_bytes() == whole
        names = {"memory": "Listening", "transcript": "transcribe", "answer": "ask_together"}
        for line in (line for line in known if line["kind"] != "skipped"):
            again = [call for call in done if call[:2] == (names[line["kind"]], Path(line["recording"]).name)]
            assert not [call for call in again if line.get("question") in (None, *call[2:])]
        assert not [p for p in (tmp_path / output).rglob(".*") if p.name != ".lock"]
        stop += 1
    assert stop > 10


def test_a_killed_process_is_taken_up_again(ask_all, tiny_checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    for number in range(6):
        write_sound(corpus / f"more{number}.wav", 20, seed=number)
    words = ["batch", corpus, "--output", tmp_path / "out", "--questions", tmp_path / "questions.txt"]
    words += ["--model", tiny_checkpoint, "--backend", "torch", "--max-tokens", "6"]
    process = subprocess.Popen([sys.executable, "-m", "speech_xl", *words], stderr=subprocess.DEVNULL)
    path = tmp_path / "out" / "results.jsonl"
    try:
        while not (path.exists() and b"more2.wav" in path.read_bytes()):
            assert process.poll() is None  # it ended by itself
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = path.read_bytes().splitlines(True)
    assert ask_all()[0] == 0
    after = path.read_bytes().splitlines(True)
    assert set(before[:-1]) <= set(after) and len(set(after)) == len(after) == 1 + 8 * 3
    assert ask_all(output="whole")[0] == 0 and (tmp_path / "whole" / "results.jsonl").read_bytes() == b"".join(after)


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_how_many_are_heard_at_once_changes_nothing(ask_all, corpus: Path, tmp_path: Path, at_once: int) -> None:
    for number in range(5):
        write_sound(corpus / f"more{number}.wav", 2 + 3 * number, seed=number)
    ask_all("--transcribe", output="default")
    ask_all("--transcribe", "--at-once", at_once, output="other")
    default, other = (lines_of(tmp_path / name) for name in ("default", "other"))
    assert len(default) == len(other) == 1 + 7 * 4

    def plain(lines: list[dict]) -> list[dict]:
        """Numbers without their last digits."""
        return json.loads(json.dumps(lines), parse_float=lambda text: round(float(text), 4))

    assert plain(default) == plain(other)


def test_a_list_gives_recordings_questions_of_their_own(run, corpus: Path, tmp_path: Path) -> None:
    listed = [
        {"audio": "talks/two.wav", "question": "how many?"},
        {"audio": "talks/two.wav", "questions": ["which?"]},
        {"audio": "gone.wav"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, listed)))
    code, out, err = run(source=path)
    assert code == 0 and "1 of 2 recordings heard, 2 answers, 1 skipped" in out and "gone.wav cannot be read" in err
    assert [line.get("question") for line in lines_of(tmp_path / "out")] == [None, "how many?", "which?", None]


def test_memories_are_asked_without_their_recordings(ask_all, tmp_path: Path, done: list) -> None:
    ask_all()
    memories = tmp_path / "kept"
    shutil.move(tmp_path / "out" / "memories", memories)
    done.clear()
    code, out, err = ask_all(source=memories, output="again")
    assert code == 0 and "2 of 2 recordings heard, 4 answers" in out, err
    assert not [call for call in done if call[0] == "Listening"]
    first, again = (
        [line["answer"] for line in lines_of(tmp_path / name) if line["kind"] == "answer"] for name in ("out", "again")
    )
    assert sorted(first) == sorted(again)


def test_words_that_were_recognised_are_kept_and_searched(
    run, corpus: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The recogniser is made up; whose words they are, and that nothing is read back, is what counts."""
    model = save_checkpoint(tmp_path / "model", tiny_recognizer_config())
    (tmp_path / "corpus.txt").write_text("Which recordings mention bridges?\nWho says anything about 'snow'?")

    said = iter([[], [work.Segment(1.0, 2.0, "The bridge is closed.")]])
    monkeypatch.setattr(work, "recognized_segments", lambda words: next(said))
    monkeypatch.setattr(work, "transcribe", None)
    words = ["batch", corpus, "--output", tmp_path / "out", "--model", model, "--backend", "torch"]
    assert main([*map(str, words), "--corpus-questions", str(tmp_path / "corpus.txt")]) == 0
    out = capsys.readouterr().out
    assert "day1/one.wav [0:01-0:02]" in out and "two.wav [" not in out
    bridges, snow = (json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines())
    span = {"start": 1.0, "end": 2.0, "text": "The bridge is closed."}
    assert bridges["recordings"] == [{"recording": "day1/one.wav", "spans": [span]}] and snow["recordings"] == []
    sources = [line["source"] for line in lines_of(tmp_path / "out") if line["kind"] == "transcript"]
    assert sources == ["heard", "heard"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--ratio", "3"], "choose one of"),
        (["--ratio", "8", "--memory-budget", "1MiB"], "not both"),
        (["--questions", "nowhere.txt"], "cannot be read"),
        (["--workers", "2"], "add --ray"),
        (["--at-once", "0"], "1 or more"),
        (["--ray", "--workers", "0"], "one or more"),
        (["--ray", "--num-gpus", "-1"], "give a number"),
    ],
)
def test_what_no_recording_can_be_heard_with_is_refused_at_once(run, tmp_path: Path, words, sentence) -> None:
    assert sentence in refused(run(*words))
    assert not (tmp_path / "out").exists()


def test_a_question_about_all_recordings_is_noticed(run, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("Which recordings mention a bridge?\nWhat is said?")
    _, _, err = run("--questions", tmp_path / "questions.txt")
    assert err.count("--corpus-questions searches all") == 1


def test_questions_that_cannot_be_asked_are_refused_at_once(run, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a" * 5000)
    assert "characters" in refused(run("--questions", tmp_path / "long.txt"))
    (tmp_path / "empty.txt").write_text("Which recordings mention it?")
    assert "no word to search for" in refused(run("--corpus-questions", tmp_path / "empty.txt"))
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"audio": "talks/two.wav", "question": " "}))
    assert "two.wav cannot be asked" in refused(run(source=path))
    assert not (tmp_path / "out").exists()


def test_a_corpus_that_nothing_can_be_heard_of_is_exit_code_2(run, corpus: Path, tmp_path: Path) -> None:
    code, out, err = run(source=corpus / "bad.wav")
    assert code == 2 and out == "" and "None of the recordings could be heard" in err
    assert [line["kind"] for line in lines_of(tmp_path / "out")] == ["skipped"]


def test_results_of_other_settings_are_kept_apart(ask_all, tmp_path: Path) -> None:
    ask_all("--ratio", 8)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert "another ratio (8, now 4)" in refused(ask_all("--ratio", 4))
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_a_full_disk_stops_the_batch_with_what_is_done(ask_all, tmp_path: Path, monkeypatch) -> None:
    appended = []

    def full(path, mode="r"):
        if mode == "ab":
            appended.append(path)
            if len(appended) == 3:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return open(path, mode)

    monkeypatch.setattr(results, "open", full, raising=False)
    code, _, err = ask_all()
    assert code == 2 and "No space left" in err and "Traceback" not in err
    assert len(lines_of(tmp_path / "out")) == 2
    monkeypatch.undo()
    assert ask_all()[0] == 0 and len(lines_of(tmp_path / "out")) == 7
