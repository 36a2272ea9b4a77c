"""`speech-xl batch --parquet`: the table says what results.jsonl says, row by row."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from speech_xl.batch import parquet
from speech_xl.cli import main
from speech_xl.errors import OutputError
from tests.tiny import write_sound

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (the extra parquet)")


def words_of(folder: Path, model: Path) -> list[str]:
    """The command for two recordings, one that is none, and a question."""
    talks = folder / "talks"
    talks.mkdir()
    write_sound(talks / "one.wav", 2.5, seed=1)
    write_sound(talks / "two.wav", 3.0, seed=2)
    (talks / "bad.wav").write_text("this is no sound")
    (folder / "questions.txt").write_text("what is order 4?")
    words = [talks, "--questions", folder / "questions.txt", "--transcribe", "--output", folder / "out"]
    return ["batch", *map(str, words), "--model", str(model), "--backend", "torch", "--max-tokens", "6"]


def filled(value: Any) -> Any:
    """Without the columns that are null."""
    return {name: part for name, part in value.items() if part is not None}


def test_the_table_says_what_the_lines_say(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of(tmp_path, tiny_checkpoint)
    assert main(words) == 0 and not (tmp_path / "out" / parquet.TABLE).exists()
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 2)
    assert main([*words, "--parquet"]) == 0  # of a batch that is finished
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "out" / parquet.TABLE)
    assert [filled(row) for row in table.to_pylist()] == lines and len(lines) == 7
    assert {line["kind"] for line in lines} == {"memory", "transcript", "answer", "skipped"}
    assert set(table.column_names) == set().union(*lines)
    again = (tmp_path / "out" / parquet.TABLE).read_bytes()
    assert main([*words, "--parquet"]) == 0 and (tmp_path / "out" / parquet.TABLE).read_bytes() == again


def test_a_name_that_is_no_text_and_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / parquet.TABLE
    parquet.write_parquet([{"kind": "skipped", "recording": os.fsdecode(b"a\xff.wav"), "reason": "It is empty."}], path)
    assert pq.read_table(path)["recording"].to_pylist() == ["a\\udcff.wav"]
    parquet.write_parquet([], path)
    assert pq.read_table(path).num_rows == 0
    with pytest.raises(OutputError, match="choose another folder"):
        parquet.write_parquet([], tmp_path / "nowhere" / parquet.TABLE)


def test_without_pyarrow_nothing_is_heard(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main([*words_of(tmp_path, tiny_checkpoint), "--parquet"]) == 2
    assert "pip install '.[parquet]'" in capsys.readouterr().err and not (tmp_path / "out").exists()
