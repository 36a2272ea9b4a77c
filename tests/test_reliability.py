"""Campaigns, a little of them: they run, they find nothing, and what they look with sees what is there to be seen."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from reliability.hostile_page import running
from reliability.mutations import mutate_json, mutate_safetensors
from reliability.subjects import Subject, in_order

ROOT = Path(__file__).parent.parent


def campaign(output: Path, *words: str) -> tuple[dict, str]:
    """Run one in a process of its own, which forks -> (its report, what it printed)."""
    command = [sys.executable, "-m", "reliability", *words, "--seed", "7", "--output", str(output)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stderr
    return json.loads((output / f"{words[0]}.json").read_text()), ended.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="kills are timed by Linux's clock of a process")
def test_one_kill(tmp_path: Path) -> None:
    report, _ = campaign(tmp_path / "out", "kill", "--kills", "1", "--of", "listen")
    assert report["findings"] == []
    assert report["figures"]["listen"]["kills at random moments"] >= 1  # what goes on after one may be killed again
    assert report["figures"]["listen"]["kills at changes"] > 2


def test_a_hundred_fuzzed_inputs(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    report, _ = campaign(tmp_path / "out", "fuzz", "--inputs", "100", "--of", "safetensors")
    assert report["findings"] == [] and report["figures"]["safetensors"]["inputs"] >= 100


@pytest.mark.skipif(sys.platform != "linux", reason="disks are Linux's tmpfs")
def test_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    report, _ = campaign(tmp_path / "out", "disk", "--of", "convert")
    if report["skipped"]:
        pytest.skip(report["skipped"][0])
    assert report["findings"] == [] and report["figures"]["convert"]["refused"] > 3


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """What an undisturbed command leaves, and a folder for a disturbed one."""
    for name in ("whole", "disturbed"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "a.txt").write_text("one\ntwo\n")
    return tmp_path / "whole", tmp_path / "disturbed"


@pytest.mark.parametrize("text, wrong", [("one\ntwo\n", []), ("one\n", ["a.txt"]), ("", ["a.txt"])])
def test_half_a_file_is_seen(text: str, wrong: list[str], files: tuple[Path, Path]) -> None:
    whole, disturbed = files
    (disturbed / "a.txt").write_text(text)
    assert Subject("none", lambda folder: []).half_written(disturbed, whole, {}) == wrong


@pytest.mark.parametrize(
    "text, wrong", [("one\ntw", []), ("", []), ("two\n", []), ("one\nto", ["a.txt"]), ("x\n", ["a.txt"])]
)
def test_lines_may_be_cut_short_and_not_wrong(text: str, wrong: list[str], files: tuple[Path, Path]) -> None:
    whole, disturbed = files
    (disturbed / "a.txt").write_text(text)
    growing = Subject("none", lambda folder: [], growing=("a.txt",))
    assert growing.half_written(disturbed, whole, {}) == wrong


def test_lines_that_do_not_count_may_differ_and_be_cut(files: tuple[Path, Path]) -> None:
    def counts(name: str, data: bytes) -> bytes:
        return b"".join(line for line in data.splitlines(keepends=True) if b"speed" not in line)

    whole, disturbed = files
    subject = Subject("none", lambda folder: [], counts, growing=("*.txt",))
    (whole / "a.txt").write_text("one\nspeed 12\ntwo\n")
    for text, wrong in (("one\nspeed 7\ntw", []), ("one\nspeed 7", []), ("one\nspe", []), ("on\n", ["a.txt"])):
        (disturbed / "a.txt").write_text(text)
        assert subject.half_written(disturbed, whole, {}) == wrong


def test_a_memory_is_the_same_in_whichever_order_its_header_is_written() -> None:
    def written(names: str) -> bytes:
        header = json.dumps({"__metadata__": dict.fromkeys(names, "x")}).encode()
        return len(header).to_bytes(8, "little") + header + b"data"

    assert in_order(written("abc")) == in_order(written("cab")) != in_order(written("abd"))
    assert in_order(b"no header") == b"no header"


def test_an_older_folder_may_still_be_there_but_whole(files: tuple[Path, Path]) -> None:
    whole, disturbed = files
    (whole / "b.txt").write_text("new")
    for name in ("a.txt", "b.txt"):
        (disturbed / name).write_text("old")
    subject = Subject("none", lambda folder: [])
    before = subject.files(disturbed)
    assert subject.half_written(disturbed, whole, before) == []
    (disturbed / "b.txt").write_text("new")
    assert subject.half_written(disturbed, whole, before) == ["a.txt"]


def test_changed_documents_differ_and_repeat_with_the_seed() -> None:
    document = json.dumps({"a": [1, 2.5, "x"], "b": {"c": '{"d": 1}'}}).encode()
    made = [mutate_json(document, random.Random(seed)) for seed in range(50)]
    assert made == [mutate_json(document, random.Random(seed)) for seed in range(50)] and len(set(made)) > 40
    header = mutate_safetensors(len(document).to_bytes(8, "little") + document + b"data", random.Random(1))
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length]) != json.loads(document) and header[8 + length :] == b"data"


def test_what_would_run_on_a_page_is_seen() -> None:
    assert running(["<b>x</b>", {"value": ("&lt;img src=x&gt;",)}]) == []
    assert running([{"value": "<img src=x onerror=alert(1)>"}]) == ["img", "onerror"]
