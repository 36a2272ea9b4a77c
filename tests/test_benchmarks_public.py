"""Public benchmarks: tiny copies in their layouts, and tables worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluation.run
from evaluation.__main__ import main
from evaluation.benchmarks import BENCHMARKS, audiomarathon, longspeech_scores, voicegiraffe
from evaluation.benchmarks.benchmark import Answered, BenchmarkError
from evaluation.data import Data, DataError, check_lines
from speech_xl.errors import SpeechXLError
from tests.tiny import write_sound


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_json_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def touch_sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sound(path, 0.2)


def read(name: str, folder: Path, **chosen: Any) -> tuple[Data, dict[str, dict]]:
    """-> (the items, the fields of each line by its id)."""
    lines = BENCHMARKS[name].read(folder)
    data = check_lines(lines, folder, folder, chosen.get("kinds", ()), chosen.get("skip", False))
    return data, {line.fields["id"]: line.fields for line in lines}


def scored(name: str, folder: Path, said: dict[str, str]) -> tuple[dict[str, float | None], list[str]]:
    """The table of what was said to each id."""
    data, fields = read(name, folder)
    assert {item.id for item in data.items} == set(said)
    return BENCHMARKS[name].score([Answered(item, fields[item.id], said[item.id]) for item in data.items])


def rounded(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is None else round(value, 3) for name, value in figures.items()}


# VoiceGiraffe


def giraffe_entry(audio: str, answer: str, kind: str, level: str, language: str, **more: Any) -> dict[str, Any]:
    question = "When exactly?  \nA: [209, 218]  \nB: [156, 165]\nC: [196, 205]\nD: [145, 154]"
    return {
        "question": question,
        "answer": answer,
        "audio": audio,
        "qa_type": kind,
        "qa_level": level,
        "language_type": language,
    } | more


@pytest.fixture
def giraffe(tmp_path: Path) -> Path:
    rows = [
        giraffe_entry("one.wav", "C", "Timestamp", "T1", "英文"),
        giraffe_entry(
            "/data/youtube_long/two.wav", "A", "State", "T2", "英文", instruction="You are ...", aux_info="{}"
        ),
        giraffe_entry("one.wav", "B", "Timestamp", "T1", "中文", question="何时？\nA：一\nB：二\nC：三\nD：四"),
        giraffe_entry("one.wav", "D", "State", "T2", "中文"),
    ]
    write_json_lines(tmp_path / "benchmark" / "benchmark_1500.jsonl", rows)
    touch_sound(tmp_path / "audios" / "one.wav")
    touch_sound(tmp_path / "audios" / "two.flac")
    return tmp_path


def test_voicegiraffe_is_read_and_scored(giraffe: Path) -> None:
    data, _ = read("voicegiraffe", giraffe)
    first, second, third, _ = data.items
    assert (first.kind, first.answer, first.letters) == ("Timestamp", "C", ("A", "B", "C", "D"))
    assert first.prompt == (
        "When exactly?\nA. [209, 218]\nB. [156, 165]\nC. [196, 205]\nD. [145, 154]\nAnswer with the letter alone."
    )
    assert second.audio == giraffe / "audios" / "two.flac"  # the ending may differ
    assert (third.question, third.choices) == ("何时？", ("一", "二", "三", "四"))
    figures, notes = scored(
        "voicegiraffe", giraffe, {"1": "C", "2": "The answer is (B).", "3": "答案：B", "4": "no idea"}
    )
    assert rounded(figures) == {
        "overall": 50,
        "type State": 0,
        "type Timestamp": 100,
        "level T1": 100,
        "level T2": 0,
        "language Chinese": 50,
        "language English": 50,
        "State, Chinese": 0,
        "State, English": 0,
        "Timestamp, Chinese": 100,
        "Timestamp, English": 100,
    }
    assert next(iter(figures)) == "overall" and notes == ["1 of 4 answers name no letter and count as wrong."]


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("Answer: C", "C"),
        ("I think that the answer is D", "D"),
        ("maybe [A] or so", "A"),
        ("Well\nC.\nThat is it", "C"),
        ("Either A, or else B", "B"),
        ("最终\n答案：D", "D"),
        ("", None),
        ("none", None),
    ],
)
def test_voicegiraffe_looks_for_a_letter_in_its_order(said: str, letter: str | None) -> None:
    assert voicegiraffe.read_letter(said) == letter


# AudioMarathon


def lettered(path: str, answer: str, *choices: str, **more: Any) -> dict[str, Any]:
    named = {f"choice_{letter}": choice for letter, choice in zip("abcde", choices, strict=False)}
    return {"path": path, "question": "Which one?", "answer_gt": answer, **named} | more


@pytest.fixture
def marathon(tmp_path: Path) -> Path:
    """All ten tasks, two entries each where that is enough."""
    chapter = tmp_path / "librispeech-long" / "test-clean" / "61" / "70968"
    for name in ("61-70968-0000", "61-70968-0001"):
        touch_sound(chapter / f"{name}.flac")
    (chapter / "61-70968-0000.txt").write_text("He began, a CONFUSED complaint!\n")
    (chapter / "61-70968.trans.txt").write_text("61-70968-0001 don't give not so earnest a mind\n")
    four = ("tea", "milk", "juice", "water")
    write_json(
        tmp_path / "race_audio" / "race_benchmark.json",
        [
            {"audio_path": "test/high/1.wav", "question": "Why?", "options": list(four), "answer": "A"},
            {"audio_path": "test/high/1.wav", "question": "How?", "options": list(four), "answer": "B"},
        ],
    )
    touch_sound(tmp_path / "race_audio" / "test" / "high" / "1.wav")
    for label in ("real", "fake"):
        for number in range(2):
            touch_sound(tmp_path / "HAD" / "concatenated_audio" / label / f"{number}.wav")
    entries = [lettered("x/1.wav", "A", *four), lettered("x/2.wav", "B", *four)]
    for file, places in {
        "SLUE/merged_audio_data.json": ["SLUE"],
        "GTZAN/concatenated_audio/music_genre_classification_meta.json": ["GTZAN/concatenated_audio/wav"],
        "TAU/acoustic_scene_task_meta.json": ["TAU/concatenated_resampled"],
    }.items():
        write_json(tmp_path / file, entries)
        for place in places:
            touch_sound(tmp_path / place / "x" / "1.wav")
            touch_sound(tmp_path / place / "x" / "2.wav")
    write_json(
        tmp_path / "VESUS" / "audio_emotion_dataset.json",
        [
            lettered("1.wav", "a", *four, person_id=1, emotion_label="Happy"),
            lettered("1.wav", "B", *four, person_id="10", emotion_label="happy"),  # left out, as publicly
            lettered("1.wav", "C", *four, person_id="10", emotion_label="sad"),
        ],
    )
    touch_sound(tmp_path / "VESUS" / "1.wav")
    desed = tmp_path / "DESED" / "DESED_dataset" / "concatenated_audio"
    write_json(
        desed / "desed_sound_event_detection_task.json",
        {
            "tasks": [
                {
                    "path": "1.wav",
                    "question": "What is heard?",
                    "choices": dict(zip("ABCD", four, strict=True)),
                    "answer_gt": "D",
                },
            ]
        },
    )
    touch_sound(desed / "1.wav")
    vox = tmp_path / "VoxCeleb" / "concatenated_audio"
    write_json(
        vox / "gender_id_task_meta.json",
        [lettered("1.wav", gender, "male", "female") for gender in ("male", "male", "female")],
    )
    ages = ("Young Adult (18-30)", "Adult (31-50)", "Senior")
    write_json(
        vox / "age_classification_task_meta.json",
        [
            lettered("1.wav", "Adult (31-50)", *ages),
            lettered("1.wav", "Senior", *ages),
        ],
    )
    touch_sound(vox / "wav" / "1.wav")
    return tmp_path


SAID = {
    "ASR 61-70968-0000": "he began a confused complaint",
    "ASR 61-70968-0001": "dont give not so a mind today",
    "SCR 1": "A",
    "SCR 2": "B. milk",
    "SD real 0": "A",
    "SD real 1": "b)",
    "SD fake 0": "it is fake",
    "SD fake 1": "B",
    "SER 1": "The correct option is A",
    "SER 2": "it may be juice",
    "MC 1": "A",
    "MC 2": "A",
    "ASC 1": "tea",
    "ASC 2": "nothing",
    "ER 1": "A",
    "ER 3": "C",
    "SED 1": "D",
    "SGR 1": "a male voice",
    "SGR 2": "A female voice",
    "SGR 3": "B",
    "SAR 1": "Adult (31-50)",
    "SAR 2": "A",
}


def test_audiomarathon_is_read_in_all_its_layouts(marathon: Path) -> None:
    data, _ = read("audiomarathon", marathon)
    items = {item.id: item for item in data.items}
    assert set(items) == set(SAID) and list(dict.fromkeys(i.kind for i in data.items)) == list(audiomarathon.COLUMNS)
    assert items["ASR 61-70968-0001"].text == "don't give not so earnest a mind"
    assert items["ER 1"].answer == "A" and items["SGR 3"].answer == "B" and items["SAR 2"].answer == "C"
    assert items["MC 2"].audio == marathon / "GTZAN" / "concatenated_audio" / "wav" / "x" / "2.wav"
    assert items["SCR 1"].choices == ("tea", "milk", "juice", "water")


def test_audiomarathon_is_scored_as_its_scripts_do(marathon: Path) -> None:
    figures, notes = scored("audiomarathon", marathon, SAID)
    by_hand = {
        "SER": (100 + 0 + 0) / 3,  # A right; B taken for C: classes A, B and C occur
        "SCR": (100 + 100 + 0 + 0) / 4,  # over the four letters, whichever occur
        "ASR": 100 - (0 + 100 * 2 / 7) / 2,  # one word is missing and one put in, of seven
        "SED": 100,
        "MC": (100 * 2 / 3 + 0 + 0 + 0) / 4,  # A: precision a half, recall one
        "ASC": 100,  # the answer that names no choice is left out
        "SD": (100 * 2 / 3 + 100 * 4 / 5) / 2,
        "ER": 100,
        "SAR": (100 + 0 + 0) / 3,
        "SGR": 2 / 3 * (100 * 2 / 3) + 1 / 3 * (100 * 2 / 3),  # weighted by how often each is right
    }
    assert figures == pytest.approx({"average": sum(by_hand.values()) / 10} | by_hand)
    assert notes == ["ASC: 1 of 2 answers name no choice; as in the public scripts, F1 omits them."]


def test_audiomarathons_average_counts_asr_as_accuracy_and_wants_all_tasks(marathon: Path) -> None:
    public = (26.3, 85.1, 98.1, 78.4, 100.0, 72.2, 72.3, 53.4, 21.4, 98.0)  # of a row of the public table
    assert sum(public) / 10 == pytest.approx(70.5, abs=0.05)
    data, fields = read("audiomarathon", marathon, kinds=("ASR", "SCR"))
    figures, _ = audiomarathon.score([Answered(item, fields[item.id], SAID[item.id]) for item in data.items])
    assert figures["average"] is None and figures["SCR"] == 50 and figures["MC"] is None
    silent = [Answered(item, fields[item.id], "") for item in data.items]
    assert audiomarathon.score(silent).figures["ASR"] == 0


# LongSpeech


def message_row(task: str, answer: str, language: str = "en", **more: Any) -> dict[str, Any]:
    user = {"role": "user", "audio": "LongSpeech_p1/wavs/a.wav", "content": f"Do the {task}:"}
    return {"language": language, "task": task, "messages": [user, {"role": "assistant", "content": answer}]} | more


LONG = {
    "ASR": [("one two three four five six", "en", "one two tree four five"), ("你好世界", "zh", "你好 世间")],
    "translation": [
        ("the cat is on the mat", "en", "The Cat is on the mat"),
        ("it is good to see you", "de", "it is good to see you"),
    ],
    "summary": [("alpha beta gamma", "en", "alpha beta delta"), ("one two", "en", "one two")],
    "speaker_count": [
        ("3", "en", "There are three speakers."),
        ("2", "en", "(4)"),
        ("2", "en", "I do not know"),
        ("5", "en", "5"),
    ],
    "content_separation": [("There are 2 topics.", "en", "2")],
    "language_detection": [
        ("English", "en", "The language is English."),
        ("French", "fr", "German"),
        ("中文", "zh", "中文"),
        ("German", "de", "I cannot tell"),
    ],
    "emotionQA": [
        ("Excited", "en", "It sounds amused."),
        ("Hopeful", "en", "Positive-HighArousal"),
        ("Serious", "en", "calm"),
        ("Weird", "en", "Calm"),
    ],
    "Temporal_Relative_QA": [("After the song.", "en", "after the song")],
}


@pytest.fixture
def long_speech(tmp_path: Path) -> Path:
    for task, entries in LONG.items():
        rows = [message_row(task, answer, language) for answer, language, _ in entries]
        if task == "summary":  # as the public viewer shows them
            rows[0]["messages"] = json.dumps(rows[0]["messages"])
            rows[1]["messages"] = [json.dumps(message) for message in rows[1]["messages"]]
        write_json_lines(tmp_path / "LongSpeechQA" / task / "test.jsonl", rows)
    touch_sound(tmp_path / "LongSpeech_p1" / "wavs" / "a.wav")
    return tmp_path


def test_longspeech_is_read_and_scored(long_speech: Path) -> None:
    data, _ = read("longspeech", long_speech)
    first = data.items[0]
    assert (first.id, first.kind, first.text, first.question) == ("ASR 1", "ASR", LONG["ASR"][0][0], None)
    count = next(item for item in data.items if item.id == "speaker_count 2")
    assert (count.question, count.answer, count.audio) == (
        "Do the speaker_count:",
        "2",
        long_speech / "LongSpeech_p1" / "wavs" / "a.wav",
    )
    said = {f"{task} {n}": entry[2] for task, entries in LONG.items() for n, entry in enumerate(entries, 1)}
    figures, notes = scored("longspeech", long_speech, said)
    assert rounded(figures) == {
        "ASR: WER": 33.333,  # of six words one is another, and one is missing
        "ASR: CER of CJK": 25.0,
        "ASR: CER": round(100 * (1 + 3 + 1) / (22 + 4), 3),  # "h" and "six" of 22 letters, and one of 4 characters
        "translation: BLEU": 100,
        "summary: ROUGE-1": round(100 * (2 / 3 + 1) / 2, 3),
        "summary: ROUGE-2": 75.0,  # one of two pairs, and the one there is
        "summary: ROUGE-L": round(100 * (2 / 3 + 1) / 2, 3),
        "speaker_count: N.A": 50,
        "speaker_count: P.R": 75,
        "speaker_count: Pr": 66.667,
        "speaker_count: M.R": 25,
        "content_separation: N.A": 100,
        "content_separation: P.R": 100,
        "content_separation: Pr": 100,
        "content_separation: M.R": 0,
        "language_detection: D.A": 50,
        "language_detection: M.R": 25,
        "language_detection: D.E": 25,
        "emotionQA: strict": 25,
        "emotionQA: relaxed": 50,
    }
    assert len(notes) == 2 and notes[0].startswith("Temporal_Relative_QA has no figure")
    assert notes[1] == "emotionQA: nothing can be read out of 1 right answers; their lines count as wrong."


def test_longspeechs_answers_are_read() -> None:
    assert [longspeech_scores.read_number(s) for s in ("twenty-one of them", "[2]", "none")] == [21, 2, None]
    languages = ("en", "<|de|>", "Mandarin Chinese", "I cannot determine it", "it")
    assert [longspeech_scores.read_language(s) for s in languages] == ["en", "de", "zh", None, "it"]
    emotions = ("Negative - Tension / Seriousness", "rather somber", "calmness", "a serious, intense tone")
    assert [longspeech_scores.read_emotion(s) for s in emotions] == [
        "negative-tension/seriousness",
        "negative-sadness/reflection",
        None,
        "negative-tension/seriousness",
    ]


# What is no copy of a benchmark


def break_giraffe(folder: Path, **fields: Any) -> None:
    write_json_lines(
        folder / "benchmark" / "benchmark_1500.jsonl",
        [giraffe_entry("one.wav", "C", "Timestamp", "T1", "英文") | fields],
    )


def break_marathon(folder: Path, entries: Any) -> None:
    write_json(folder / "race_audio" / "race_benchmark.json", entries)


def break_long(folder: Path, **fields: Any) -> None:
    write_json_lines(folder / "LongSpeechQA" / "ASR" / "test.jsonl", [message_row("ASR", "words") | fields])


VERSION = "perhaps another version"


@pytest.mark.parametrize(
    ("name", "copy", "harm", "wrong"),
    [
        ("voicegiraffe", "giraffe", lambda f: (f / "audios" / "one.wav").unlink(), "there is no recording .*one.wav"),
        ("voicegiraffe", "giraffe", lambda f: break_giraffe(f, answer="E"), "none of the choices"),
        ("voicegiraffe", "giraffe", lambda f: break_giraffe(f, question="When?"), f"choices A to D; .*{VERSION}"),
        ("voicegiraffe", "giraffe", lambda f: break_giraffe(f, qa_level=None), f'no "qa_level"; .*{VERSION}'),
        ("voicegiraffe", "giraffe", lambda f: (f / "benchmark" / "more.jsonl").touch(), "holds 2 files"),
        (
            "voicegiraffe",
            "giraffe",
            lambda f: (f / "benchmark" / "benchmark_1500.jsonl").write_text("{"),
            "line 1 is not JSON",
        ),
        ("audiomarathon", "giraffe", lambda f: None, "holds no task of AudioMarathon"),
        ("audiomarathon", "marathon", lambda f: break_marathon(f, {"a": 1}), f"no list of entries; .*{VERSION}"),
        (
            "audiomarathon",
            "marathon",
            lambda f: break_marathon(f, [{"audio_path": "1.wav"}]),
            f'no "answer_gt"; .*{VERSION}',
        ),
        (
            "audiomarathon",
            "marathon",
            lambda f: break_marathon(f, [lettered("1.wav", "A", "tea")]),
            f"no choices; .*{VERSION}",
        ),
        (
            "audiomarathon",
            "marathon",
            lambda f: break_marathon(f, [lettered("1.wav", "A", "x", "y")]),
            "there is no recording",
        ),
        (
            "audiomarathon",
            "marathon",
            lambda f: write_json(f / "old" / "merged_audio_data.json", []),
            "holds 2 copies of merged",
        ),
        (
            "audiomarathon",
            "marathon",
            lambda f: next(f.rglob("*.trans.txt")).unlink(),
            f"no transcript beside it; .*{VERSION}",
        ),
        ("longspeech", "giraffe", lambda f: None, "holds no LongSpeechQA/TASK/test.jsonl"),
        (
            "longspeech",
            "long_speech",
            lambda f: break_long(f, task="summary"),
            f"'summary', in the file of ASR; .*{VERSION}",
        ),
        ("longspeech", "long_speech", lambda f: break_long(f, messages="x"), f"no message of the user .*{VERSION}"),
        ("longspeech", "long_speech", lambda f: break_long(f, language=""), f'no "language"; .*{VERSION}'),
    ],
)
def test_what_is_no_copy_is_one_sentence(
    name: str,
    copy: str,
    harm: Callable[[Path], Any],
    wrong: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = request.getfixturevalue(copy)
    harm(folder)
    with pytest.raises((BenchmarkError, DataError), match=wrong) as found:
        read(name, folder)
    assert isinstance(found.value, SpeechXLError)
    assert main([str(folder), "--benchmark", name]) == 2  # before any model is loaded
    assert capsys.readouterr().err.strip() == str(found.value)


def test_a_benchmark_wants_a_folder_and_lines_want_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "gone"), "--benchmark", "longspeech"]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2 and "is a folder; name a file" in capsys.readouterr().err


def test_recordings_that_are_missing_can_be_left_out(giraffe: Path) -> None:
    (giraffe / "audios" / "two.flac").unlink()
    data, _ = read("voicegiraffe", giraffe, skip=True)
    assert (len(data.items), data.missing) == (3, 1)
    (giraffe / "audios" / "one.wav").unlink()
    with pytest.raises(DataError, match="None of the recordings"):
        read("voicegiraffe", giraffe, skip=True)


def test_a_benchmark_runs_like_any_data(
    giraffe: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = giraffe / "out"

    def run(*more: str) -> int:
        return main(
            [
                str(giraffe),
                "--benchmark",
                "voicegiraffe",
                "--model",
                str(tiny_checkpoint),
                "--backend",
                "torch",
                "--output",
                str(out),
                *more,
            ]
        )

    monkeypatch.setattr(evaluation.run, "ask_item", lambda model, heard, item: (item.answer, None))
    assert run("--ratios", "4", "--kinds", "State") == 0
    assert "| overall | 100.0 |" in capsys.readouterr().out
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "entries that were asked: 2 of 1500" in report and "| State, Chinese | 100.0 |" in report
    assert "sst,4,voicegiraffe,overall,100.000000,,,,,,," in (out / "report.csv").read_text()
    monkeypatch.setattr(evaluation.run, "ask_item", lambda model, heard, item: ("C", None))
    assert run("--ratios", "4", "8") == 0  # what was answered stays answered; all kinds and one ratio more
    rows = [json.loads(row) for row in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["ratio"], row["id"], row["said"]) for row in rows] == [
        (4, "2", "A"),
        (4, "4", "D"),
        (4, "1", "C"),
        (4, "3", "C"),
        (8, "1", "C"),
        (8, "3", "C"),
        (8, "4", "C"),
        (8, "2", "C"),
    ]
    lines = [json.loads(row) for row in (out / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["Timestamp", "State", "Timestamp", "State"]
    assert all(Path(line["audio"]).is_file() for line in lines)
    assert main([str(out / "lines.jsonl"), "--model", str(tiny_checkpoint), "--ratios", "4"]) == 0  # plain data, too
    before = (out / "results.jsonl").read_bytes()
    break_giraffe(giraffe)  # another version of the same layout
    capsys.readouterr()
    assert (
        run("--ratios", "4") == 0 and "not counted" in capsys.readouterr().err
    )  # lines that stayed are not asked again
    assert (out / "results.jsonl").read_bytes().startswith(before)
    assert run("--kinds", "Causal") == 2 and "no line of the kind 'Causal'" in capsys.readouterr().err


def test_voicegiraffes_choices_may_stand_apart_and_go_on_in_further_lines() -> None:
    question = "What is heard?\nTwice.\n\nA: a bell  \n\nB： a dog,\n   far away\nC: rain\nD: [1, 2]\n"
    assert voicegiraffe.split_options(question, "here") == (
        "What is heard?\nTwice.",
        {"A": "a bell", "B": "a dog, far away", "C": "rain", "D": "[1, 2]"},
    )
    for wrong in ("What?\nA: a\nB: b\nD: d", "A: a\nB: b\nC: c\nD: d", "What?"):
        with pytest.raises(BenchmarkError, match="does not end with the choices A to D"):
            voicegiraffe.split_options(wrong, "here")
