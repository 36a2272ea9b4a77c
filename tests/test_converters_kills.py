"""Broken-off conversions: kills and full disks, and running the same command again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from converters import convert as conversion
from converters import stream
from speech_xl.checkpoints import check_checkpoint
from tests import families
from tests.families import all_tensors, refusal, run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.qwen2_audio(tmp_path_factory.mktemp("source") / "tiny-audio")


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A source that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


def test_a_broken_conversion_continues(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(source, tmp_path / "whole") == 0
    monkeypatch.setattr(stream, "SHARD", 12_000)
    honest, written = stream.write_shard, []

    def write(path: Path, *rest: object) -> None:
        written.append(path.name)
        if len(written) == 4:
            path.with_suffix(".unfinished").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        honest(path, *rest)

    monkeypatch.setattr(conversion, "write_shard", write)
    out = tmp_path / "out"
    assert run(source, out) == 130
    assert not out.exists()
    assert run(source, out) == 0
    assert written[3] == written[4] and len(set(written)) == len(written) - 1, "finished shards are not made again"
    assert not list(out.glob("*.unfinished")) and not (out / "journal.json").exists()
    assert not (tmp_path / "out.partial").exists()
    whole, resumed = all_tensors(tmp_path / "whole"), all_tensors(out)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(whole)
    assert check_checkpoint(out)


@pytest.mark.parametrize("rename", [1, 2])
def test_killed_while_the_output_gets_its_name(rename: int, source: Path, tmp_path: Path, monkeypatch) -> None:
    out, honest, renames = tmp_path / "out", Path.rename, []
    assert run(source, out) == 0

    def die(path: Path, target: Path) -> Path:
        renames.append(path)
        if len(renames) == rename:
            raise KeyboardInterrupt
        return honest(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        assert run(source, out, "--dtype", "float16", "--overwrite") == 130
    assert run(source, out, "--dtype", "float16", "--overwrite") == 0
    assert check_checkpoint(out).dtype == "float16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"] and not (out / "journal.json").exists()


def test_another_conversion_does_not_continue_the_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHARD", 12_000)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "check_checkpoint", stop)
        assert run(source, tmp_path / "out") == 130
    assert run(source, tmp_path / "out", "--dtype", "bfloat16", "--verify") == 0
    assert all(t.dtype == torch.bfloat16 for t in all_tensors(tmp_path / "out").values())


SLOW = """
import sys, time
import converters.stream as stream
import converters.convert as conversion
stream.SHARD = 12_000
honest = stream.write_shard
def write(path, recipes, layout, written):
    def slowly(count):
        time.sleep(0.02)
        written(count)
    honest(path, recipes, layout, slowly)
conversion.write_shard = write
from converters.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_killed_without_warning_and_run_again(source: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "out", tmp_path / "out.partial"
    words = [sys.executable, "-c", SLOW, "--hf-path", str(source), "--mlx-path", str(out)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(work.glob("model-*.safetensors")) if work.exists() else []) < 3 and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL and not out.exists()
    finished = {p: p.stat().st_mtime_ns for p in work.glob("model-*.safetensors")}
    again = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert all((out / p.name).stat().st_mtime_ns == t for p, t in finished.items())
    assert run(source, tmp_path / "whole") == 0
    whole, resumed = all_tensors(tmp_path / "whole"), all_tensors(out)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_a_disk_without_room_is_seen_before_writing(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    assert "too little" in refusal(capsys, source, tmp_path / "out")


def test_a_disk_that_fills_up(source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_shard", full)
        assert "full" in refusal(capsys, source, tmp_path / "out")
    assert run(source, tmp_path / "out") == 0


def test_an_output_that_exists_is_replaced_only_when_asked(source: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run(source, out) == 0
    assert "--overwrite" in refusal(capsys, source, out)
    assert run(source, out, "--dtype", "float16", "--overwrite") == 0
    assert check_checkpoint(out).dtype == "float16"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert "no checkpoint folder" in refusal(capsys, source, precious, "--overwrite")
    assert "the source itself" in refusal(capsys, out, out, "--overwrite")
