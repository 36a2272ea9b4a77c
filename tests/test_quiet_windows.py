"""Windows for a recogniser: cut where it is quiet, the same however the sound arrives, nothing lost."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.features import Window, log_mel
from speech_xl.quiet_windows import QuietWindowStream
from tests.tiny import sound, tiny_recognizer_config

ENCODER = tiny_recognizer_config().encoder  # windows of 1.92 s
SIZE = ENCODER.window_frames * 160
LONGEST, SEARCHED = SIZE * 14 // 15, SIZE * 4 // 15


def windows_of(*blocks: np.ndarray) -> list[Window]:
    stream = QuietWindowStream(ENCODER)
    found = [window for block in blocks for window in stream.push(block)]
    return found + stream.finish()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5 * SIZE), st.lists(st.integers(0, 5 * SIZE), max_size=4), st.integers(0, 3))
def test_any_blocks_give_the_same_windows_and_all_the_sound(length: int, cuts: list[int], seed: int) -> None:
    samples = sound(length / 16_000, seed)
    found = windows_of(*np.split(samples, sorted(min(c, length) for c in cuts)))
    at = 0
    for i, (window, other) in enumerate(zip(found, windows_of(samples), strict=True)):
        assert window.index == i and window.valid_samples == other.valid_samples <= LONGEST
        alone = np.zeros(SIZE, np.float32)
        alone[: window.valid_samples] = samples[at : at + window.valid_samples]
        np.testing.assert_array_equal(window.mel, log_mel(alone, 80)[0])
        np.testing.assert_array_equal(window.mel, other.mel)
        at += window.valid_samples
    assert at == length


def test_a_window_ends_in_the_middle_of_the_quietest_place_of_its_last_part() -> None:
    samples = sound(2 * SIZE / 16_000)
    samples[4_000:9_000] = 0  # quieter, but too early
    pause = LONGEST - SEARCHED + 2_400
    samples[pause : pause + 4_800] *= 0.01
    first = windows_of(samples)[0]
    assert pause + 800 <= first.valid_samples <= pause + 4_000


def test_what_fits_one_window_is_not_cut() -> None:
    assert [w.valid_samples for w in windows_of(sound(LONGEST / 16_000))] == [LONGEST]
    assert len(windows_of(sound((LONGEST + 1) / 16_000))) == 2


@pytest.mark.parametrize(("level", "is_heard"), [(0.0, False), (0.0005, False), (0.003, True)])
def test_silence_is_not_transformed(level: float, is_heard: bool) -> None:
    noise = level * np.random.default_rng(0).standard_normal(3 * SIZE).astype(np.float32)
    found = windows_of(noise)
    assert len(found) >= 3 and all((w.mel is not None) == is_heard for w in found)
    click = np.zeros(SIZE // 2, np.float32)
    click[::7] = level * 9
    assert (windows_of(click)[0].mel is not None) == (level > 0)


def test_memory_does_not_grow_with_length() -> None:
    big = dataclasses.replace(ENCODER, max_source_positions=400)

    def peak(blocks: int) -> int:
        stream, block = QuietWindowStream(big), sound(2.0)
        tracemalloc.start()
        for _ in range(blocks):
            stream.push(block)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(8)
    assert peak(60) < 1.2 * peak(10)
