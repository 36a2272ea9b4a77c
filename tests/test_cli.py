"""The command line: what it prints, and one sentence with exit code 2 for everything that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from safetensors.numpy import load_file, save_file

from speech_xl.arguments import parse_bytes, read_questions
from speech_xl.cli import main
from speech_xl.config import SSTConfig
from speech_xl.errors import QuestionError, ScheduleError
from speech_xl.plain_text import harmless
from tests.tiny import END, save_checkpoint, sound, tiny_config, write_sound

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture
def run(tiny_checkpoint: Path, capsys: pytest.CaptureFixture):
    def call(*arguments: object, model: Path = tiny_checkpoint) -> tuple[int, str, str]:
        words = [str(a) for a in arguments]
        if words[0] in ("ask", "listen", "transcribe"):
            words += ["--model", str(model), "--backend", "torch"]
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def refused(result: tuple[int, str, str]) -> str:
    """The one sentence of a refusal."""
    code, out, err = result
    assert code == 2 and out == "" and "Traceback" not in err
    lines = [line for line in err.strip().splitlines() if "listening" not in line]
    assert len(lines) == 1 and lines[0].endswith((".", ".)"))
    return lines[0]


def test_ask_prints_exactly_one_json_document(run, recording: Path) -> None:
    code, out, _ = run("ask", recording, "what is order 4?", "and order 5?", "--json", "--ratio", "8")
    assert code == 0
    document = json.loads(out)
    assert list(document) == ["recording", "model", "backend", "memory", "timing", "answers"]
    assert document["recording"]["seconds_heard"] == pytest.approx(7.33, abs=1e-3)
    assert document["memory"] == {
        "intervals": 6,
        "ratio": "8",
        "slots": 13,
        "speech_tokens": 92,
        "bytes": 13 * 2 * 2 * 2 * 8 * 4,
    }
    assert [a["question"] for a in document["answers"]] == ["what is order 4?", "and order 5?"]
    for answer in document["answers"]:
        weights = [e["weight"] for e in answer["evidence"]]
        assert weights == sorted(weights, reverse=True) and 0 < sum(weights) <= 1
        assert all(0 <= e["start"] < e["end"] <= 7.34 for e in answer["evidence"])


def test_a_memory_answers_as_its_recording(run, recording: Path, tmp_path: Path) -> None:
    memory = tmp_path / "talk.sxl"
    assert run("listen", recording, "-o", memory)[0] == 0
    from_audio, from_memory = (json.loads(run("ask", p, "a?", "--json")[1]) for p in (recording, memory))
    assert from_audio["answers"] == from_memory["answers"]
    assert from_audio["memory"] == from_memory["memory"]
    assert from_audio["recording"]["sha256"] == from_memory["recording"]["sha256"]
    assert "13 slots" not in run("info", memory)[1] and "24 for 92 speech tokens" in run("info", memory)[1]
    assert list(tmp_path.iterdir()) == [memory]


def test_questions_may_stand_behind_options(run, recording: Path) -> None:
    code, out, _ = run("ask", recording, "one?", "--ratio", "8", "two?", "--json", "three?")
    assert code == 0 and [a["question"] for a in json.loads(out)["answers"]] == ["one?", "two?", "three?"]
    with pytest.raises(SystemExit) as stopped:
        run("ask", recording, "--ratoi", "8", "two?")
    assert stopped.value.code == 2


def test_questions_come_from_lines_or_json_lines(run, recording: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text('a b?\n\n{"question": "c d?", "answer": "x"}\n')
    assert read_questions(file) == ["a b?", "c d?"]
    code, out, err = run("ask", recording, "--questions", file)
    assert code == 0 and out.count("?") >= 2 and "listening" in err


def test_info_describes_recordings_and_checkpoints(run, recording: Path, tiny_checkpoint: Path) -> None:
    assert "7.33 s" in run("info", recording)[1]
    out = run("info", tiny_checkpoint)[1]
    total = sum(a.size for a in load_file(tiny_checkpoint / "model.safetensors").values())
    assert f"{total:,}" in out and "memory per hour, ratio 16" in out and "can hold it" in out


@pytest.mark.parametrize(("text", "count"), [("64MiB", 64 * 2**20), ("1.5 kb", 1500), ("12", 12), ("2gib", 2**31)])
def test_budgets_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1MiB", "3 parsecs"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ScheduleError, match="64MiB"):
        parse_bytes(text)


def make_bad_recording(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "text":
        path.write_text("this is no sound")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "header":
        sf.write(path, np.zeros(0, np.float32), 16_000)
    elif kind == "nan":
        sf.write(path, np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    elif kind == "blink":
        write_sound(path, 0.05)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "header", "nan", "blink"])
def test_recordings_that_cannot_be_heard(run, tmp_path: Path, kind: str) -> None:
    bad = make_bad_recording(kind, tmp_path)
    output = tmp_path / "out.sxl"
    for command in (["ask", bad, "a?"], ["listen", bad, "-o", output], ["ask", bad, "a?", "--json"]):
        assert bad.name in refused(run(*command)) or kind == "blink"
    assert not output.exists() and not [p for p in tmp_path.iterdir() if p != bad]


@pytest.mark.parametrize("command", [["ask"], ["listen"]])
def test_names_that_no_file_can_have(run, tmp_path: Path, command: list[str]) -> None:
    words = ["a?"] if command == ["ask"] else []
    assert "too long" in refused(run(*command, tmp_path / ("a" * 300 + ".wav"), *words))
    assert "folder" in refused(run(*command, tmp_path / "..", *words))


@needs_ffmpeg
def test_a_recording_may_hold_more_than_it_declares(run, tmp_path: Path) -> None:
    whole, lying = tmp_path / "whole.webm", tmp_path / "lying.webm"
    command = ["ffmpeg", "-v", "error", "-i", write_sound(tmp_path / "a.wav", 20.0), "-c:a", "libopus", whole]
    subprocess.run(command, check=True)
    data = whole.read_bytes()
    assert data.count(b"00:00:20.0") == 1
    lying.write_bytes(data.replace(b"00:00:20.0", b"00:00:05.0"))
    code, out, err = run("ask", lying, "a?", "--json", "--memory-budget", "10KiB")
    document = json.loads(out)
    assert code == 0 and document["recording"]["seconds_heard"] == pytest.approx(20, abs=0.1)
    assert document["recording"]["seconds"] == pytest.approx(5, abs=0.1)
    assert "longer than it declares" in err


@pytest.mark.parametrize(("channels", "rate"), [(8, 16_000), (1, 192_000), (2, 8_000)])
def test_any_channels_and_rates_are_heard(run, tmp_path: Path, channels: int, rate: int) -> None:
    path = tmp_path / "odd.wav"
    sf.write(path, np.tile(sound(1.0, rate=rate)[:, None], (1, channels)), rate)
    code, out, _ = run("ask", path, "a?", "--json")
    assert code == 0 and json.loads(out)["recording"]["seconds_heard"] == pytest.approx(1, abs=0.01)


def write_silence(path: Path, minutes: int) -> Path:
    with sf.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        for _ in range(minutes):
            file.write(np.zeros(60 * 16_000, np.int16))
    return path


def test_an_hour_of_silence_is_heard(run, tmp_path: Path) -> None:
    large_steps = tiny_config(
        encoder__max_source_positions=500, encoder__context_positions=0, sst=SSTConfig(256, (2, 4, 8, 16), 4)
    )
    model, path = save_checkpoint(tmp_path / "model", large_steps), write_silence(tmp_path / "silence.flac", 60)
    code, out, _ = run("ask", path, "a?", "--json", "--ratio", "16", model=model)
    assert code == 0 and json.loads(out)["recording"]["seconds_heard"] == 3600
    assert json.loads(out)["memory"]["speech_tokens"] == 45_000


@needs_ffmpeg
def test_a_truncated_mp3_is_heard_and_the_rest_said_to_be_missing(run, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mp3", tmp_path / "cut.mp3"
    sf.write(whole, sound(20.0), 16_000, format="MP3")
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    code, out, err = run("ask", cut, "a?", "--json")
    heard = json.loads(out)["recording"]["seconds_heard"]
    assert code == 0 and 8 < heard < 12
    assert "cut.mp3" in err or "missing" in err


@pytest.mark.parametrize("ratio", ["3", "0", "-2", "much", "32"])
def test_unknown_ratios(run, recording: Path, ratio: str) -> None:
    assert "ratio" in refused(run("ask", recording, "a?", f"--ratio={ratio}")).lower()


def test_a_budget_too_small_names_one_that_would_do(run, recording: Path) -> None:
    sentence = refused(run("ask", recording, "a?", "--memory-budget", "500"))
    enough = sentence.split("; ")[1].split(" would")[0]
    assert run("ask", recording, "a?", "--memory-budget", enough)[0] == 0


def test_a_budget_takes_the_smallest_ratio_that_fits(run, recording: Path) -> None:
    document = json.loads(run("ask", recording, "a?", "--json", "--memory-budget", "8KiB")[1])
    assert document["memory"]["ratio"] == "4" and document["memory"]["bytes"] <= 8192


@pytest.mark.parametrize("ratio", ["4", "raw", "3", "much"])
def test_a_ratio_beside_a_budget_is_refused(run, recording: Path, ratio: str) -> None:
    assert "ratio" in refused(run("ask", recording, "a?", "--memory-budget", "1MiB", "--ratio", ratio))


def test_an_answer_that_is_cut_says_so(run, recording: Path) -> None:
    code, out, err = run("ask", recording, "a?", "--max-tokens", "3")
    assert code == 0 and "cut at 3 tokens" in err and out.strip()
    answer = json.loads(run("ask", recording, "a?", "--json", "--max-tokens", "3")[1])["answers"][0]
    assert list(answer) == ["question", "answer", "finish_reason", "evidence"] and answer["finish_reason"] == "length"
    for wrong in ("0", "-3", "many", "9" * 5000):
        assert "number of tokens" in refused(run("ask", recording, "a?", f"--max-tokens={wrong}"))


def test_more_positions_than_the_decoder_knows_are_announced(run, recording: Path, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", tiny_config(decoder__max_position_embeddings=60))
    code, _, err = run("listen", recording, "--ratio", "raw", "-o", tmp_path / "talk.sxl", model=model)
    assert code == 0 and "93 positions" in err and "trained for 60" in err
    asked = run("ask", tmp_path / "talk.sxl", "a?", "--from", "0", "--to", "1", "--max-tokens", "5", model=model)
    assert asked[0] == 0 and "93 positions" in asked[2]  # the memory still says so; this question is far from the end
    assert asked[2].count("positions") == 1
    asked = run("ask", recording, "a?", "b?", "--ratio", "2", "--max-tokens", "30", model=model)
    assert asked[0] == 0 and asked[2].count("trained for 60") == 1  # the answers reach beyond, not the memory


def test_a_span_is_asked_from_a_recording_or_a_memory(run, recording: Path, tmp_path: Path) -> None:
    run("listen", recording, "-o", tmp_path / "talk.sxl")
    words = ["a?", "--json", "--from", "0:02", "--to", "3.5"]
    heard, kept = (json.loads(run("ask", path, *words)[1]) for path in (recording, tmp_path / "talk.sxl"))
    assert heard["answers"] == kept["answers"] and heard["memory"]["slots"] == 24
    assert all(1.6 < e["start"] < e["end"] < 4 for e in heard["answers"][0]["evidence"])


@pytest.mark.parametrize("command", [["ask", "a?"], ["transcribe"]])
@pytest.mark.parametrize(
    ("span", "sentence"),
    [
        (["--from", "0:05", "--to", "0:02"], "after the start"),
        (["--from", "1:00"], "outside"),
        (["--to", "0:20"], "outside"),
        (["--from", "soon"], "M:SS"),
    ],
)
def test_spans_that_cannot_be_asked(run, recording: Path, tmp_path: Path, command, span, sentence) -> None:
    command, *words = command
    assert sentence in refused(run(command, recording, *words, *span))
    run("listen", recording, "-o", tmp_path / "talk.sxl")
    assert sentence in refused(run(command, tmp_path / "talk.sxl", *words, *span))


def test_a_transcript_has_one_document_and_three_forms(run, recording: Path, tmp_path: Path) -> None:
    memory = tmp_path / "talk.sxl"
    run("listen", recording, "-o", memory)
    document = json.loads(run("transcribe", memory, "--format", "json")[1])
    assert list(document) == ["recording", "model", "memory", "segments"]
    assert document["memory"]["slots"] == 24 and document["recording"]["seconds_heard"] == pytest.approx(7.33, abs=1e-3)
    segments = document["segments"]
    assert segments and all(list(s) == ["start", "end", "text"] and s["text"] for s in segments)
    assert json.loads(run("transcribe", recording, "--format", "json")[1])["segments"] == segments
    assert run("transcribe", memory)[1].splitlines() == [harmless(s["text"]) for s in segments]
    for name, start in (("talk.srt", "1\n00:00:0"), ("talk.vtt", "WEBVTT\n\n00:00:0")):
        code, out, _ = run("transcribe", memory, "-o", tmp_path / name)
        text = (tmp_path / name).read_text()
        assert code == 0 and out == "" and text.startswith(start) and text.count("-->") == len(segments)
        assert run("transcribe", memory, "--format", name[-3:])[1] == harmless(text)
    part = json.loads(run("transcribe", memory, "--format", "json", "--from", "2", "--to", "0:03")[1])["segments"]
    assert part == [s for s in segments if s["start"] < 3 and s["end"] > 2]


def test_a_transcript_that_cannot_be_written_leaves_nothing(run, recording: Path, tmp_path: Path) -> None:
    for output in (tmp_path, tmp_path / "none" / "talk.srt"):
        assert "give another name" in refused(run("transcribe", recording, "-o", output))
    bad = make_bad_recording("text", tmp_path)
    assert bad.name in refused(run("transcribe", bad, "-o", tmp_path / "talk.srt"))
    assert list(tmp_path.iterdir()) == [bad]


def test_special_tokens_in_a_question_do_not_end_it(run, recording: Path) -> None:
    answers = json.loads(run("ask", recording, END + "a b?", "a b?", "--json", "--max-tokens", "8")[1])["answers"]
    assert answers[0]["question"] == END + "a b?"
    assert [a["finish_reason"] for a in answers] == ["length", "length"]


def test_raw_never_breaks_a_budget_silently(run, recording: Path) -> None:
    assert "keeps every" in refused(run("ask", recording, "a?", "--summarizer", "raw", "--memory-budget", "8KiB"))
    document = json.loads(run("ask", recording, "a?", "--summarizer", "raw", "--memory-budget", "1MiB", "--json")[1])
    assert document["memory"]["ratio"] == "raw" and document["memory"]["slots"] == 93


@pytest.mark.parametrize("question", ["", "   ", "a" * 100_000])
def test_questions_that_cannot_be_asked(run, recording: Path, question: str) -> None:
    assert "question" in refused(run("ask", recording, question)).lower()


def test_question_files_that_cannot_be_read(run, recording: Path, tmp_path: Path) -> None:
    empty, broken, deep = tmp_path / "empty.txt", tmp_path / "broken.jsonl", tmp_path / "deep.jsonl"
    empty.write_text("\n")
    broken.write_text('a?\n\n{"query": "a?"}\n')
    deep.write_text('{"question": ' + "[" * 100_000 + "]" * 100_000 + "}")
    for path in (empty, broken, deep, tmp_path / "missing.txt"):
        assert path.name in refused(run("ask", recording, "--questions", path))
    with pytest.raises(QuestionError, match="line 3"):
        read_questions(broken)


@pytest.mark.parametrize("damage", ["noise", "cut", "foreign format", "other model", "spans", "missing"])
def test_memories_that_cannot_be_asked(run, recording: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "talk.sxl"
    if damage != "missing":
        assert run("listen", recording, "-o", path)[0] == 0
    model = {}
    if damage == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(500))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign format":
        save_file({"keys": np.zeros(3)}, path)
    elif damage == "spans":
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        arrays = load_file(path)
        save_file(arrays | {"spans": arrays["spans"][:-1]}, path, metadata=metadata)
    elif damage == "other model":
        model = {"model": save_checkpoint(tmp_path / "other", tiny_config(), seed=9)}
    sentence = refused(run("ask", path, "a?", **model))
    assert "talk.sxl" in sentence
    assert damage != "other model" or "another model" in sentence


def test_a_memory_has_its_ratio_already(run, recording: Path, tmp_path: Path) -> None:
    run("listen", recording, "-o", tmp_path / "talk.sxl")
    assert "--ratio" in refused(run("ask", tmp_path / "talk.sxl", "a?", "--ratio", "4"))


def test_outputs_that_cannot_be_written(run, recording: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.sxl").mkdir()
    for output in (tmp_path / "folder.sxl", tmp_path / "none" / "talk.sxl", tmp_path / "talk.txt"):
        assert output.name in refused(run("listen", recording, "-o", output)) or "none" in str(output)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.sxl"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that runs tests in the background has them ignore Ctrl-C, which programs they start would inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_no_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, output = write_silence(tmp_path / "long.flac", 180), tmp_path / "long.sxl"
    command = [sys.executable, "-m", "speech_xl", "listen", path, "-o", output, "--model", tiny_checkpoint]
    process = subprocess.Popen([*command, "--backend", "torch"], stderr=subprocess.PIPE, text=True)
    seen = ""
    try:
        while "real time" not in seen:
            piece = process.stderr.read(20)
            assert piece, seen  # it ended by itself
            seen += piece
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()  # where the test fails, nothing goes on behind it
    assert process.returncode == 130 and "Traceback" not in rest and "Stopped" in rest
    assert [p.name for p in tmp_path.iterdir()] == ["long.flac"]


def test_a_closed_pipe_ends_quietly(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "speech_xl", "info", tiny_checkpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a?", "--ratio", "\N{SUPERSCRIPT TWO}"], "not a ratio"),
        (["a?", "--ratio", "9" * 5000], "not a ratio"),
        (["a?", "--memory-budget", "9" * 400 + "GiB"], "not an amount of memory"),
        (["what \udcff?"], "not valid Unicode"),
    ],
)
def test_words_that_no_number_or_text_can_be_made_of(run, recording: Path, words: list[str], sentence: str) -> None:
    refusal = refused(run("ask", recording, *words))
    assert sentence in refusal and len(refusal) < 200


@needs_ffmpeg
def test_a_budget_needs_a_known_length(run, recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "stream.aac"
    subprocess.run(["ffmpeg", "-v", "error", "-i", recording, path], check=True)
    assert "how long it is" in refused(run("ask", path, "a?", "--memory-budget", "64MiB"))
    assert run("ask", path, "a?")[0] == 0


def test_a_memory_is_named_after_its_recording(run, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "talk.wav", 1.0)
    assert run("listen", path)[0] == 0 and (tmp_path / "talk.sxl").exists()


def test_a_name_that_is_no_text_is_shown_by_its_bytes(run, recording: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(recording.read_bytes())
    code, out, _ = run("listen", path)
    assert code == 0 and "caf\\udce9.sxl" in out
    code, out, _ = run("info", path.with_suffix(".sxl"))
    assert code == 0 and "caf\\udce9.wav" in out


def test_a_name_does_nothing_to_a_terminal(run, recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J\u202ered\n.wav"
    path.write_bytes(recording.read_bytes())
    said = [run(*words)[1] for words in (["listen", path], ["info", path], ["info", path.with_suffix(".sxl")])]
    said.append(refused(run("ask", path.with_name("\x1b]0;title\a.wav"), "a?")))
    said.append(refused(run("info", path.with_name("\x9b2J.sxl"))))
    assert [line for text in said for line in text.splitlines() if not line.isprintable()] == []
    assert all("\\x1b[2J\\u202ered\\n." in text for text in said[:3]) and "\\x1b]0;title\\x07.wav" in said[3]


def test_an_unknown_tensor_is_named(run, recording: Path, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", tiny_config())
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"decoder.colour": np.zeros(3, np.float32)}, model / "model.safetensors")
    for result in (run("ask", recording, "a?", model=model), run("info", model)):
        assert "decoder.colour" in refused(result)
