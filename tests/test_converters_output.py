"""Where a conversion writes: that nothing of anybody else is ever deleted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from converters import convert as conversion
from converters import stream
from speech_xl.checkpoints import check_checkpoint
from tests import families
from tests.families import refusal, run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.qwen2_audio(tmp_path_factory.mktemp("source") / "tiny-audio")


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A source that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


def interrupted(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    """The work folder of a conversion that was stopped at its end."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "check_checkpoint", stop)
        assert run(source, out, *more) == 130
    return out.with_name(f"{out.name}.partial")


@pytest.mark.parametrize("place", ["out/model", "out.partial/model", "out.partial"])
def test_a_source_is_never_inside_what_is_replaced(place: str, source: Path, tmp_path: Path, capsys) -> None:
    inside = Path(shutil.copytree(source, tmp_path / place))
    whisper = families.whisper(tmp_path / "whisper")
    for words in ([inside], [whisper, "--decoder", str(inside)]):
        assert str(tmp_path / "out") in refusal(capsys, words[0], tmp_path / "out", "--overwrite", *words[1:])
    assert (inside / "model.safetensors").is_file()


def test_a_hub_snapshots_blobs_are_part_of_the_source(source: Path, tmp_path: Path, capsys) -> None:
    assert run(source, tmp_path / "out") == 0
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "out").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert "is inside" in refusal(capsys, tmp_path / "snapshot", tmp_path / "out", "--overwrite")


def test_strangers_are_named_and_stay(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out"
    assert run(source, out) == 0
    for name in ("thesis.txt", "MODEL_CARD.md"):
        (out / name).write_text("years of work")
        assert name in refusal(capsys, source, out, "--overwrite")
        (out / name).unlink()
    (out / "step-100").mkdir()
    assert "step-100" in refusal(capsys, source, out, "--overwrite")
    work = interrupted(source, tmp_path / "new", monkeypatch)
    (work / "thesis").mkdir()
    for more in ((), ("--dtype", "float16")):
        assert "thesis" in refusal(capsys, source, tmp_path / "new", *more)
    assert (work / "model.safetensors").is_file()


def test_a_strangers_journal_makes_no_work_folder(source: Path, tmp_path: Path, capsys) -> None:
    work = tmp_path / "out.partial"
    work.mkdir()
    (work / "journal.json").write_text("[]")
    (work / "model.safetensors").write_text("years of work")
    assert "in the way" in refusal(capsys, source, tmp_path / "out")
    assert (work / "model.safetensors").read_text() == "years of work"


def test_an_output_that_appears_meanwhile_stays(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out, honest = tmp_path / "out", conversion.write_shard

    def write(*arguments: object) -> None:
        honest(*arguments)
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")

    monkeypatch.setattr(conversion, "write_shard", write)
    assert run(source, out) == 2
    assert "appeared" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    shutil.rmtree(out)
    assert run(source, out) == 0, "the finished work is continued"


def test_folders_with_our_sort_of_name_stay(source: Path, tmp_path: Path) -> None:
    for name in ("out.partial-replaced", "out.replaced-12345678"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
    assert run(source, tmp_path / "out") == 0
    assert run(source, tmp_path / "out", "--overwrite") == 0
    assert len(list(tmp_path.glob("out.*/thesis.txt"))) == 2 and len(list(tmp_path.iterdir())) == 3


def test_a_linked_output_is_replaced_where_it_is(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "real") == 0
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert run(source, tmp_path / "link", "--overwrite", "--dtype", "float16") == 0
    assert (tmp_path / "link").is_symlink() and check_checkpoint(tmp_path / "real").dtype == "float16"


def test_killed_after_the_last_rename(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Path.unlink

    def die(path: Path, *more: object) -> None:
        if path.name == "journal.json":
            raise KeyboardInterrupt
        honest(path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        assert run(source, tmp_path / "out") == 130
    assert run(source, tmp_path / "out") == 0
    assert not (tmp_path / "out/journal.json").exists() and check_checkpoint(tmp_path / "out")


def test_half_a_journal_is_not_part_of_the_output(source: Path, tmp_path: Path, monkeypatch) -> None:
    work = interrupted(source, tmp_path / "out", monkeypatch)
    (work / "journal.unfinished").write_text("{")
    assert run(source, tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("changed", ["weights", "tokenizer"])
def test_a_source_that_changed_is_not_continued(changed: str, copied: Path, tmp_path: Path, monkeypatch) -> None:
    interrupted(copied, tmp_path / "out", monkeypatch, "--with-sst")
    path = copied / ("model.safetensors" if changed == "weights" else "tokenizer.json")
    before = path.stat()
    if changed == "weights":
        tensors = load_file(path)
        save_file({name: t + 1 for name, t in tensors.items()}, path, {"format": "pt"})
    else:
        path.write_text(path.read_text().replace("<|im_end|>", "<|im_eee|>"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p and rsync do
    assert path.stat().st_size == before.st_size
    written = []
    monkeypatch.setattr(
        conversion, "write_shard", lambda path, *rest: (written.append(path), stream.write_shard(path, *rest))
    )
    assert run(copied, tmp_path / "out", "--with-sst") == 0
    assert written


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "~no-such-user/out", "a\0b", "a\udcffb", "/"])
def test_impossible_output_names(name: str, source: Path, tmp_path: Path, capsys) -> None:
    assert run(source, tmp_path / name if "/" not in name else name) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_reader_that_leaves_stops_nothing(source: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "converters", "--hf-path", str(source), "--mlx-path", str(tmp_path / "out")]
    made = subprocess.run(
        ["bash", "-c", '"$@" | true; echo ${PIPESTATUS[0]}', "-", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert made.stdout.strip() == "0" and "Broken" not in made.stderr and check_checkpoint(tmp_path / "out")
    for closed in ("1", "2"):
        closing = ["bash", "-c", f'exec "$@" --overwrite {closed}>&-', "-", *words]
        assert subprocess.run(closing, cwd=ROOT).returncode == 0
