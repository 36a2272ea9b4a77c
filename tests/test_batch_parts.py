"""The parts of a batch that hear nothing: which recordings are meant, the file of results, the search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speech_xl.batch.recordings import Recording, find_recordings
from speech_xl.batch.results import Results
from speech_xl.batch.search import search, terms_of
from speech_xl.errors import OutputError, QuestionError, RecordingError

SETTINGS = {"fingerprint": "abc", "ratio": "default"}


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Files of many kinds, none of which is opened."""
    shown = ["b.wav", "a.mp3", "d.sxl", "note.txt", "cover.jpg", "list.jsonl", "odd", "sub/c.m4a"]
    for name in [*shown, ".hidden.wav", ".git/d.wav"]:
        path = tmp_path / "talks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path / "talks"


def names(*inputs: object, output: Path = Path("/nowhere")) -> list[str]:
    return [recording.name for recording in find_recordings([str(text) for text in inputs], output)]


def test_a_folder_means_what_its_names_do_not_rule_out(talks: Path) -> None:
    assert names(talks) == ["a.mp3", "b.wav", "d.sxl", "odd", "sub/c.m4a"]
    assert names(talks, output=talks / "sub") == ["a.mp3", "b.wav", "d.sxl", "odd"]


def test_globs_and_files_mean_what_they_say(talks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(talks / "*.*") == ["a.mp3", "b.wav", "cover.jpg", "d.sxl", "list.jsonl", "note.txt"]
    assert names(talks / "**" / "*.m4a") == ["sub/c.m4a"]
    assert names(talks.parent / "ta*" / "sub" / "*") == ["talks/sub/c.m4a"]
    assert names(talks / "note.txt", talks / "b.wav") == ["note.txt", "b.wav"]
    (talks / "[x].wav").write_text("")  # a file whose name looks like a glob
    assert names(talks / "[x].wav") == ["[x].wav"]
    monkeypatch.chdir(talks)
    assert names("*.wav") == ["[x].wav", "b.wav"]


def test_a_recording_is_meant_once_with_all_its_questions(talks: Path) -> None:
    listed = [
        {"audio": "b.wav", "question": "a?"},
        {"audio": "b.wav", "questions": ["b?", "a?"]},
        {"audio": "../x.wav"},
    ]
    (talks / "list.jsonl").write_text("\n\n".join(map(json.dumps, listed)))
    found = find_recordings([str(talks / "list.jsonl"), str(talks)], Path("/nowhere"))
    assert [(r.name, r.questions) for r in found] == [
        ("b.wav", ("a?", "b?")),
        ("../x.wav", ()),
        ("a.mp3", ()),
        ("d.sxl", ()),
        ("odd", ()),
        ("sub/c.m4a", ()),
    ]
    assert all(recording.path.is_absolute() for recording in found)


def test_inputs_that_name_no_recording(talks: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RecordingError, match="lies in the output folder"):
        names(talks, output=talks)
    for text in ("empty", "empty.jsonl", "no*thing", "nowhere"):
        with pytest.raises(RecordingError, match=text.replace("*", r"\*")):
            names(tmp_path / text)
    (talks / "sub" / "b.wav").write_text("")
    with pytest.raises(RecordingError, match=r"both be called b\.wav"):
        names(talks / "b.wav", talks / "sub")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"audio": 3}',
        '{"audio": "a\\u0000b"}',
        '{"audio": "\\ud800"}',
        '{"audio": "x", "question": 1}',
        '{"audio": "x", "questions": "a?"}',
        "[" * 10**5,
    ],
)
def test_lists_that_cannot_be_used_name_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.jsonl").write_text('{"audio": "x.wav"}\n' + line)
    with pytest.raises(QuestionError, match="line 2"):
        names(tmp_path / "list.jsonl")


def test_a_memory_stays_in_its_folder_under_a_name_that_fits(tmp_path: Path) -> None:
    def place(name: str) -> Path:
        return Recording(name, Path("/talks") / name).memory_file(tmp_path)

    assert place("day1/a.wav") == tmp_path / "day1" / "a.wav.sxl"
    for name in ("../a.wav", "/etc/a.wav", "b/../../a.wav", "é" * 127 + ".wav"):
        path = place(name)
        assert path.resolve().is_relative_to(tmp_path) and ".." not in path.parts and len(path.name.encode()) <= 255
    assert place("../a.wav") != place("../../a.wav") and place("../a.wav").name == "a.wav.sxl"


def answer(recording: str, question: str, said: str = "yes") -> dict:
    return {"kind": "answer", "recording": recording, "question": question, "answer": said}


def test_what_a_kill_cut_short_is_not_there(tmp_path: Path) -> None:
    lines = [answer("a.wav", "a?"), answer("b.wav", "é?"), answer("b.wav", "b?")]
    with Results(tmp_path / "whole", SETTINGS) as file:
        file.add(lines[:2])
        file.add(lines[2:])
    content = (tmp_path / "whole" / "results.jsonl").read_bytes()
    for length in range(len(content) + 1):
        (tmp_path / "whole" / "results.jsonl").write_bytes(content[:length])
        with Results(tmp_path / "whole", SETTINGS) as file:
            count = content[:length].count(b"\n")
            assert list(file.lines(file.all_keys())) == lines[:count]
            file.add(lines[count:])
        assert (tmp_path / "whole" / "results.jsonl").read_bytes() == content


def test_a_later_line_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    first, second = ("b.wav", "answer", "a?"), ("a.wav", "answer", "a?")
    with Results(tmp_path, SETTINGS) as file:
        file.add([answer("a.wav", "a?", "old"), answer("b.wav", "a?"), answer("c.wav", "a?")])
        file.add([answer("a.wav", "a?", "new")])
        file.drop([("c.wav", "answer", "a?")])
        file.arrange([first, second])
        assert list(file.lines([second])) == [answer("a.wav", "a?", "new")]
    wanted = [answer("b.wav", "a?"), answer("a.wav", "a?", "new")]
    path = tmp_path / "results.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == wanted
    place = path.stat().st_ino
    with Results(tmp_path, SETTINGS) as file:
        file.arrange([first, second])
        assert list(file.lines(file.all_keys())) == wanted
    assert path.stat().st_ino == place  # what stands right is not written again


def test_folders_that_no_results_can_be_put_into(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        Results(tmp_path / "file", SETTINGS)
    with Results(tmp_path / "out", SETTINGS), pytest.raises(OutputError, match="Another batch"):
        Results(tmp_path / "out", SETTINGS)
    with pytest.raises(OutputError, match=r"another ratio \(default, now 8\)"):
        Results(tmp_path / "out", SETTINGS | {"ratio": 8})
    for line in ("no json", "[]", "{}", '{"kind": "answer", "recording": "a"}'):
        (tmp_path / "out" / "results.jsonl").write_text(json.dumps(answer("a", "b?")) + f"\n{line}\n")
        with pytest.raises(OutputError, match="line 2 is damaged"):
            Results(tmp_path / "out", SETTINGS)
    for settings in ("", "[]", "{}"):
        (tmp_path / "out" / "batch.json").write_text(settings)
        with pytest.raises(OutputError, match=r"batch\.json is damaged"):
            Results(tmp_path / "out", SETTINGS)
    (tmp_path / "out" / "batch.json").unlink()
    with pytest.raises(OutputError, match=r"without batch\.json"):
        Results(tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(
    ("question", "terms"),
    [
        ("Which recordings mention a bridge?", ["bridge"]),
        ("Who talks about the old Bridge, and when?", ["old", "Bridge"]),
        ('Where is "What is said" said of O\'Brien’s snow?', ["What is said", "O'Brien’s", "snow"]),
        ('Which recordings say "the"?', ["the"]),
        ("“Größe” 42", ["Größe", "42"]),
    ],
)
def test_a_question_is_searched_by_the_words_that_carry_its_sense(question: str, terms: list[str]) -> None:
    assert terms_of(question) == terms


def transcript(name: str, *texts: str) -> dict:
    segments = [{"start": float(n), "end": n + 1.0, "text": text} for n, text in enumerate(texts)]
    return {"kind": "transcript", "recording": name, "source": "heard", "segments": segments}


def test_recordings_are_found_by_sentences_that_have_every_word(tmp_path: Path) -> None:
    strange = "b\udcff.wav"  # the name of a file that is no text
    corpus = [
        transcript("a.wav", "The bridge was closed.", "It is old.", "We like old bridges."),
        transcript(strange, "Old bridges close early, and bridges are old.", "An old bridge: close the old bridge!"),
        transcript("c.wav", "Nothing of the kind.", ""),
    ]

    def found(question: str) -> list[tuple[str, list[float]]]:
        (answer,) = search(corpus, [question])
        assert answer["question"] == question
        return [(r["recording"], [span["start"] for span in r["spans"]]) for r in answer["recordings"]]

    assert found("Which recordings mention closing a bridge?") == [(strange, [0.0, 1.0]), ("a.wav", [0.0])]
    assert found("the old bridge") == [(strange, [0.0, 1.0]), ("a.wav", [2.0])]
    assert found('Who says "close the old bridge"?') == [(strange, [1.0])]
    assert found("submarine") == [] and found('"NEAR(" OR * bridge') == []
