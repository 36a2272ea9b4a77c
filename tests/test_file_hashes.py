"""A large file is hashed once, and again as soon as anything about it has changed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from speech_xl import file_hashes
from speech_xl.file_hashes import sha256_of


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A cache of its own, in which every file is large and settled; bytes that were hashed are noted."""
    hashed: list[int] = []
    digest = hashlib.file_digest

    def count(file, name: str):
        hashed.append(os.fstat(file.fileno()).st_size)
        return digest(file, name)

    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "LARGE", 1)
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    monkeypatch.setattr(hashlib, "file_digest", count)
    return hashed


def right(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_hashed_once(tmp_path: Path, counted: list[int]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    assert [sha256_of(path) for _ in range(3)] == [right(path)] * 3
    assert counted == [7]
    link = tmp_path / "link"
    link.symlink_to(path)
    assert sha256_of(link) == right(path)
    assert len(counted) == 1


def test_a_file_that_was_rewritten_is_hashed_again_though_its_time_was_set_back(
    tmp_path: Path, counted: list[int]
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    sha256_of(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=times)
    assert sha256_of(path) == right(path)
    other = tmp_path / "other"
    other.write_bytes(b"six")
    os.utime(other, ns=times)
    os.replace(other, path)
    assert sha256_of(path) == right(path)
    assert len(counted) == 3


def test_a_file_that_was_just_written_is_not_kept(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED", 3600.0)
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    assert sha256_of(path) == sha256_of(path) == right(path)
    assert len(counted) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": 1}', '{"identity": [], "sha256": "x"}'])
def test_a_broken_cache_costs_time_only(tmp_path: Path, counted: list[int], text: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    sha256_of(path)
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    assert json.loads(kept.read_text())["path"] == str(path)
    kept.write_text(text)
    assert sha256_of(path) == right(path)


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path / "file"))
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    assert sha256_of(path) == sha256_of(path) == right(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sha256_of(tmp_path / "nothing")
