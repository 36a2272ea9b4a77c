"""Log-mel windows have Whisper's numbers and do not depend on how the samples arrived."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.config import EncoderConfig
from speech_xl.features import WindowStream, log_mel


def encoder(max_source_positions: int, context_positions: int = 0, num_mel_bins: int = 80) -> EncoderConfig:
    return EncoderConfig(num_mel_bins, 8, 1, 1, 8, max_source_positions, context_positions)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def windows_of(config: EncoderConfig, *blocks: np.ndarray) -> list:
    stream = WindowStream(config)
    return [w for block in blocks for w in stream.push(block)] + stream.finish()


def assert_same(some: list, others: list) -> None:
    assert [(w.index, w.valid_samples) for w in some] == [(w.index, w.valid_samples) for w in others]
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one.mel, other.mel)


SECONDS = np.arange(480_000) / 16_000
SOUNDS = {
    "noise": noise(480_000),
    "tone over faint noise": np.sin(2 * np.pi * 440 * SECONDS) + 1e-3 * noise(480_000),
    "silence": np.zeros(480_000),
    "speech, then silence": np.where(SECONDS < 11, noise(480_000), 0),
}


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize("sound", SOUNDS)
def test_log_mel_equals_whispers(sound, num_mel_bins):
    transformers = pytest.importorskip("transformers")
    whisper = transformers.WhisperFeatureExtractor(feature_size=num_mel_bins)
    samples = SOUNDS[sound].astype(np.float32)
    expected = whisper(samples, sampling_rate=16_000, return_tensors="np").input_features
    actual = log_mel(samples, num_mel_bins)
    assert actual.dtype == np.float32 and actual.shape == (1, num_mel_bins, 3_000)
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def test_rows_of_a_batch_are_transformed_alone():
    batch = np.stack([noise(16_000, 1), 1e-3 * noise(16_000, 2)])
    for row, mel in zip(batch, log_mel(batch, 80), strict=True):
        np.testing.assert_allclose(mel, log_mel(row, 80)[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(200,), (2, 3, 400)])
def test_log_mel_refuses_a_shape_that_it_cannot_transform(shape):
    with pytest.raises(ValueError, match="samples must be"):
        log_mel(np.zeros(shape, np.float32), 80)


@settings(max_examples=12, deadline=None)
@given(
    positions=st.integers(5, 40),
    context=st.integers(0, 19),
    length=st.integers(0, 30_000),
    cuts=st.lists(st.integers(0, 30_000), max_size=6),
)
def test_windows_follow_the_rule_however_the_samples_arrive(positions, context, length, cuts):
    config = encoder(positions, min(context, (positions - 1) // 2))
    samples = noise(length)
    windows = windows_of(config, *np.split(samples, sorted(min(c, length) for c in cuts)))
    assert_same(windows, windows_of(config, samples))

    hop, margin = config.hop_frames * 160, config.context_frames * 160
    assert len(windows) == -(-length // hop)
    padded = np.pad(samples, (margin, hop + margin))
    for i, window in enumerate(windows):
        alone = padded[i * hop : (i + 1) * hop + 2 * margin]
        np.testing.assert_array_equal(window.mel, log_mel(alone, 80)[0])
        assert window.index == i and window.valid_samples == min(hop, length - i * hop)


def test_single_samples_give_the_same_windows_as_one_block():
    config, samples = encoder(10, 2), noise(5_000)
    assert_same(windows_of(config, *samples[:, None]), windows_of(config, samples))


def test_exact_multiple_of_the_hop_gives_no_empty_window():
    assert [w.valid_samples for w in windows_of(encoder(50), noise(3 * 16_000))] == [16_000] * 3
    assert [w.valid_samples for w in windows_of(encoder(60, 5), noise(3 * 16_000))] == [16_000] * 3


def test_a_window_waits_for_its_right_context():
    stream = WindowStream(encoder(60, 5))  # hop 16,000 samples, context 1,600
    assert stream.push(noise(17_599)) == []
    assert [w.index for w in stream.push(noise(1))] == [0]
    assert [w.valid_samples for w in stream.finish()] == [1_600]


def test_no_samples_give_no_window():
    assert windows_of(encoder(50)) == []


def test_a_finished_stream_takes_nothing_more():
    stream = WindowStream(encoder(50))
    stream.finish()
    with pytest.raises(RuntimeError, match="finished"):
        stream.push(noise(10))


def test_windows_do_not_share_memory():
    first, second = windows_of(encoder(50), noise(32_000))
    assert not np.shares_memory(first.mel, second.mel)


def test_memory_does_not_grow_with_length():
    def peak(blocks: int) -> int:
        stream, block = WindowStream(encoder(100)), noise(16_000)
        tracemalloc.start()
        for _ in range(blocks):
            stream.push(block)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(4)  # the filter bank
    assert peak(60) < 1.2 * peak(6)
