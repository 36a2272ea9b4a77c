"""The mel filters of the cache are librosa's own, and a cache that is damaged or not there costs time only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from librosa.filters import mel

from speech_xl.mel_filters import mel_filters

filters = mel_filters.__wrapped__  # as a new process calls it


@pytest.mark.parametrize("bins", [80, 128])
def test_filters_are_kept_and_are_librosas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bins: int) -> None:
    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path))
    wanted = mel(sr=16_000, n_fft=400, n_mels=bins, norm="slaney", dtype=np.float32)
    np.testing.assert_array_equal(filters(bins), wanted)
    monkeypatch.setitem(sys.modules, "librosa.filters", None)  # whoever imports it now fails
    np.testing.assert_array_equal(filters(bins), wanted)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path))
    wanted = filters(80)
    (kept,) = (tmp_path / "mel_filters").iterdir()
    data = bytearray(kept.read_bytes())
    middle = len(data) // 2
    if damage == "flipped":
        data[middle] ^= 255
    kept.write_bytes(data if damage == "flipped" else data[:middle] if damage == "cut" else b"")
    if damage == "other":
        np.savez(kept, filters=np.zeros((80, 3), np.float32))
    np.testing.assert_array_equal(filters(80), wanted)
    monkeypatch.setitem(sys.modules, "librosa.filters", None)
    np.testing.assert_array_equal(filters(80), wanted)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPEECH_XL_CACHE", str(tmp_path / "file"))
    assert filters(80).shape == (80, 201)
