"""Any file becomes 16 kHz mono blocks in constant memory, and every bad one a sentence."""

import hashlib
import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl import decoders
from speech_xl.audio import AudioReader, file_sha256, probe
from speech_xl.chained_streams import goes_on
from speech_xl.errors import RecordingError

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="ffmpeg is not installed"
)


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Reproducible quiet noise, (samples, channels) float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal((samples, channels))).astype(np.float32)


def tone(seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def write(path, samples, rate=16_000, **options):
    soundfile.write(path, samples, rate, **options)
    return path


def read(path, **options) -> np.ndarray:
    with AudioReader(path, **options) as reader:
        return np.concatenate(list(reader))


def ffmpeg(*arguments) -> None:
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def refusal(path) -> str:
    """The message with which a recording is refused, at the latest when it has been read."""
    with pytest.raises(RecordingError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message and message.endswith(".") and message.count(". ") <= 1
    return message


# What must work


def test_16_khz_mono_passes_unchanged(tmp_path):
    samples = noise(50_000)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with AudioReader(path, block_seconds=1.0) as reader:
        blocks = list(reader)
        assert reader.samples_read == 50_000 and reader.warnings == []
    assert [len(b) for b in blocks] == [16_000, 16_000, 16_000, 2_000]
    assert all(b.dtype == np.float32 for b in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), samples[:, 0])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 192_000])
def test_resampling_in_blocks_equals_one_shot(tmp_path, rate):
    samples = noise(rate * 2 + 77)
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    np.testing.assert_array_equal(read(path), soxr.resample(samples[:, 0], rate, 16_000))


def test_eight_channels_at_192_khz_are_mixed_by_their_mean(tmp_path):
    samples = noise(192_000, channels=8)
    path = write(tmp_path / "a.wav", samples, 192_000, subtype="FLOAT")
    expected = soxr.resample(samples.mean(axis=1), 192_000, 16_000)
    np.testing.assert_allclose(read(path), expected, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(block_seconds=st.floats(0.1, 7.0))
def test_block_length_changes_nothing(tmp_path_factory, block_seconds):
    path = write(tmp_path_factory.mktemp("blocks") / "a.flac", noise(100_003), 44_100)
    np.testing.assert_array_equal(read(path, block_seconds=block_seconds), read(path))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.flac", {}),
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("a.aiff", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
    ],
)
def test_compressed_formats_keep_pitch_and_length(tmp_path, name, options):
    check_tone(write(tmp_path / name, tone(2.0, 48_000), 48_000, **options))


def test_reading_mp3_in_pieces_equals_reading_it_whole(tmp_path):
    path = write(tmp_path / "a.mp3", tone(4.0, 16_000))  # several reads
    np.testing.assert_allclose(read(path), soundfile.read(path, dtype="float32")[0], atol=1e-6)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.webm", "a.mkv", "a.aac"])
def test_ffmpeg_formats_keep_pitch_and_length(tmp_path, name):
    wav = write(tmp_path / "a.wav", tone(2.0, 48_000), 48_000)
    ffmpeg("-i", wav, tmp_path / name)
    check_tone(tmp_path / name)


@needs_ffmpeg
def test_sound_of_a_video_is_heard(tmp_path):
    wav = write(tmp_path / "a.wav", tone(2.0, 48_000), 48_000)
    ffmpeg("-f", "lavfi", "-i", "color=s=32x32:d=2:r=5", "-i", wav, "-c:v", "mpeg4", tmp_path / "a.mp4")
    check_tone(tmp_path / "a.mp4")


def check_tone(path) -> None:
    """Two seconds of 440 Hz, whatever a codec adds at the ends."""
    with AudioReader(path) as reader:
        heard = np.concatenate(list(reader))
        assert reader.warnings == []
    assert len(heard) == pytest.approx(32_000, abs=2_000)
    middle = heard[8_000:24_000]
    assert np.abs(np.fft.rfft(middle)).argmax() == 440  # 16,000 samples: one bin per Hz
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_a_sound_track_that_starts_late_keeps_the_players_times(tmp_path, name):
    wav = write(tmp_path / "a.wav", tone(2.0, 48_000), 48_000)
    ffmpeg("-f", "lavfi", "-i", "color=s=32x32:d=9:r=5", "-itsoffset", 3, "-i", wav, "-c:v", "mpeg4", tmp_path / name)
    with AudioReader(tmp_path / name) as reader:
        heard = np.concatenate(list(reader))
        assert reader.warnings == []
        assert reader.info.seconds == pytest.approx(5, abs=0.2)
    assert len(heard) / 16_000 == pytest.approx(5, abs=0.1)
    assert np.flatnonzero(np.abs(heard) > 0.1)[0] / 16_000 == pytest.approx(3, abs=0.05)


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["mp3", "mp3 of any bit rate", "ogg"])
def test_joined_files_are_heard_to_their_end(tmp_path, kind):
    name = kind[:3]
    first, second, joined = (tmp_path / f"{part}.{name}" for part in ("first", "second", "joined"))
    options = ["-q:a", 4] if "any" in kind else []
    for path, seconds in ((first, 3.0), (second, 4.0)):
        wav = write(tmp_path / "a.wav", tone(seconds, 48_000), 48_000)
        ffmpeg("-i", wav, *options, path)
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with AudioReader(joined) as reader:
        heard = np.concatenate(list(reader))
        assert reader.info.seconds is None and reader.warnings == []
    assert len(heard) / 16_000 == pytest.approx(7, abs=0.2)
    assert len(read(first)) / 16_000 == pytest.approx(3, abs=0.1)
    assert not goes_on(first) and goes_on(joined)


@needs_ffmpeg
def test_contents_count_and_not_the_name(tmp_path):
    wav = write(tmp_path / "a.wav", tone(2.0, 48_000), 48_000)
    ffmpeg("-i", wav, tmp_path / "a.m4a")
    check_tone((tmp_path / "a.m4a").rename(tmp_path / "really_m4a.wav"))
    write(tmp_path / "a.mp3", tone(2.0, 48_000), 48_000)
    check_tone((tmp_path / "a.mp3").rename(tmp_path / "really_mp3.m4a"))
    check_tone(wav.rename(tmp_path / "really_wav.raw"))


@needs_ffmpeg
def test_odd_names_are_safe(tmp_path, monkeypatch):
    wav = write(tmp_path / "a.wav", tone(2.0, 48_000), 48_000)
    ffmpeg("-i", wav, tmp_path / "a.m4a")
    monkeypatch.chdir(tmp_path)
    for name in ("-i.m4a", "http:x '\"%d é语.m4a", "concat:a|b"):
        shutil.copy(tmp_path / "a.m4a", tmp_path / name)
        check_tone(type(tmp_path)(name))


def test_nothing_is_cut_at_30_seconds_and_silence_is_legal(tmp_path):
    path = write(tmp_path / "a.flac", np.zeros(3600 * 8_000, np.int16), 8_000)
    with AudioReader(path, block_seconds=60) as reader:
        assert all(not block.any() for block in reader)
        assert reader.samples_read == 3600 * 16_000


@pytest.mark.parametrize("through_ffmpeg", [False, pytest.param(True, marks=needs_ffmpeg)])
def test_memory_does_not_grow_with_length(tmp_path, through_ffmpeg):
    def peak(minutes: int) -> int:
        path = write(tmp_path / f"{minutes}.wav", np.zeros(minutes * 60 * 8_000, np.int16), 8_000)
        if through_ffmpeg:
            forget_length(path)
        tracemalloc.start()
        with AudioReader(path) as reader:
            for _ in reader:
                pass
            assert reader.samples_read == minutes * 60 * 16_000
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(1)  # imports and caches
    assert peak(10) < 1.2 * peak(1)


def forget_length(path) -> None:
    """Make a WAV file look as if its writer was stopped: a data size of zero."""
    with path.open("r+b") as file:
        file.seek(40)
        file.write(bytes(4))


@needs_ffmpeg
def test_wav_of_a_stopped_recorder_is_heard(tmp_path):
    path = write(tmp_path / "a.wav", tone(2.0, 48_000), 48_000)
    forget_length(path)
    check_tone(path)


@needs_ffmpeg
def test_flac_of_unknown_length_is_heard_to_its_end(tmp_path):
    samples = noise(100_003)
    wav = write(tmp_path / "a.wav", samples)
    path = tmp_path / "a.flac"
    # Through a pipe, where the encoder cannot go back to fill in the length.
    command = ["ffmpeg", "-v", "error", "-i", str(wav), "-f", "flac", "pipe:1"]
    path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    assert probe(path).seconds is None
    with AudioReader(path) as reader:
        assert sum(map(len, reader)) == 100_003 and reader.warnings == []


def test_probe_tells_what_the_file_declares(tmp_path):
    info = probe(write(tmp_path / "a.flac", noise(44_100 * 3, channels=2), 44_100))
    assert (info.seconds, info.sampling_rate, info.channels, info.format) == (3.0, 44_100, 2, "FLAC")


@needs_ffmpeg
def test_probe_asks_ffprobe_where_needed(tmp_path):
    wav = write(tmp_path / "a.wav", noise(44_100 * 3, channels=2), 44_100)
    ffmpeg("-i", wav, tmp_path / "a.m4a")
    info = probe(tmp_path / "a.m4a")
    assert (info.sampling_rate, info.channels, info.format) == (44_100, 2, "AAC")
    assert info.seconds == pytest.approx(3.0, abs=0.05)


def test_sha256_is_of_the_files_bytes(tmp_path):
    path = write(tmp_path / "a.wav", noise(700_000))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert AudioReader(path).sha256 == file_sha256(path) == expected


@needs_ffmpeg
def test_leaving_early_ends_ffmpeg(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(16_000 * 600, np.int16))
    forget_length(path)
    with AudioReader(path) as reader:
        next(iter(reader))
        process = reader._decoder._process
        assert process.poll() is None
    assert process.returncode is not None and process.stdout.closed
    assert list(reader) == []


# Damaged, but not useless


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.flac"])
def test_truncated_recording_is_heard_with_a_warning(tmp_path, name):
    path = write(tmp_path / name, noise(16_000 * 20))
    os.truncate(path, path.stat().st_size // 2)
    with AudioReader(path) as reader:
        heard = sum(map(len, reader)) / 16_000
    assert 8 < heard < 11
    assert len(reader.warnings) == 1
    assert "20.0 s" in reader.warnings[0] and f"{heard:.1f} s" in reader.warnings[0]


@needs_ffmpeg
def test_truncated_m4a_is_heard_with_a_warning(tmp_path):
    wav = write(tmp_path / "a.wav", noise(16_000 * 20))
    path = tmp_path / "a.m4a"
    ffmpeg("-i", wav, "-movflags", "faststart", path)
    os.truncate(path, path.stat().st_size // 2)
    with AudioReader(path) as reader:
        heard = sum(map(len, reader)) / 16_000
    assert 8 < heard < 11 and "20.0 s" in reader.warnings[0]


def test_damage_in_the_middle_keeps_what_was_read(tmp_path):
    path = write(tmp_path / "a.flac", noise(16_000 * 20))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x55" * 5_000)
    with AudioReader(path) as reader:
        heard = sum(map(len, reader)) / 16_000
    assert heard > 8 and "damaged" in reader.warnings[0]


# Refused, one sentence or two each


def test_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.wav")


def test_folder_is_refused(tmp_path):
    assert "folder" in refusal(tmp_path)


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.wav").touch()
    assert "zero bytes" in refusal(tmp_path / "a.wav")


@needs_ffmpeg
def test_text_named_wav_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("minutes of the meeting\n" * 100)
    assert "not a recording" in refusal(tmp_path / "a.wav")


def test_header_without_samples_is_refused(tmp_path):
    assert "no sound" in refusal(write(tmp_path / "a.wav", noise(0)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_refused(tmp_path, bad):
    samples = noise(50_000, channels=2)
    samples[40_000, 1] = bad
    assert "NaN" in refusal(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_too_short_recording_is_refused(tmp_path):
    assert "0.050 s" in refusal(write(tmp_path / "a.wav", noise(800)))
    assert len(read(write(tmp_path / "b.wav", noise(1_600)))) == 1_600


@needs_ffmpeg
def test_video_without_sound_is_refused(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "color=s=32x32:d=1:r=5", "-c:v", "mpeg4", tmp_path / "a.mp4")
    assert "no sound track" in refusal(tmp_path / "a.mp4")


def test_missing_ffmpeg_is_named_with_its_installation(tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "_has_ffmpeg", lambda: False)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    assert "brew install ffmpeg" in refusal(tmp_path / "a.m4a")


def test_impossible_sampling_rate_is_refused(tmp_path):
    assert "sampling rate of 7 Hz" in refusal(write(tmp_path / "a.wav", noise(50_000), 7))


def test_core_modules_load_no_framework():
    code = "import sys, speech_xl.audio, speech_xl.features; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "mlx", "transformers", "gradio", "librosa"} & set(loaded.split())
