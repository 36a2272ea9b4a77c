"""The benchmark commands: counts, bytes, shapes and the structure of what they write. Time is never looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from benchmarks import __main__ as command
from benchmarks import alternatives, answering, gpu, limits, records
from benchmarks.filling import filled_memory, tokens_in
from benchmarks.machine import describe_machine, forget_peak, machine_in_words, peak_bytes
from benchmarks.models import load_model
from benchmarks.records import MeasurementError, Records
from benchmarks.sound import RepeatedSound, windows_of, write_long_recording
from speech_xl.errors import OutputError, RecordingError
from speech_xl.memory import are_times
from tests.tiny import write_sound

STAGES = ["decode", "features", "encoder", "adapter", "decoder"]


@pytest.mark.parametrize("seconds", [0.5, 2.0, 7.25])
def test_sound_of_any_length_is_the_source_again_and_again(tmp_path: Path, seconds: float) -> None:
    source = write_sound(tmp_path / "two.wav", 2.0)
    samples, _ = sf.read(source, dtype="float32")
    wanted = np.tile(samples, 4)[: round(seconds * 16_000)]
    decoder = RepeatedSound(source, seconds).open_decoder()
    assert decoder.info.seconds == seconds
    np.testing.assert_array_equal(np.concatenate(list(decoder.blocks()))[:, 0], wanted)
    decoder.close()
    windows = list(windows_of(seconds, source))
    np.testing.assert_array_equal(np.concatenate(windows), wanted)
    write_long_recording(tmp_path / "long.flac", seconds / 60, source)
    assert sf.info(tmp_path / "long.flac").frames == len(wanted)
    assert RepeatedSound(source, seconds).sha256 != RepeatedSound(source, seconds + 1).sha256


def test_windows_are_half_a_minute(tmp_path: Path) -> None:
    source = write_sound(tmp_path / "two.wav", 2.0)
    assert [len(w) for w in windows_of(65.0, source)] == [480_000, 480_000, 80_000]
    with pytest.raises(RecordingError, match="8000 Hz"):
        next(windows_of(1.0, write_sound(tmp_path / "low.wav", 1.0, rate=8_000)))


def test_silence_cannot_be_repeated(tmp_path: Path) -> None:
    sf.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    with pytest.raises(RecordingError, match="no sound to repeat"):
        list(RepeatedSound(tmp_path / "none.wav", 1.0).open_decoder().blocks())


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    json.dumps(machine)
    words = machine_in_words(machine)
    assert machine["processor"] in words and f"torch {machine['packages']['torch']}" in words
    held = np.ones(2**24)
    assert peak_bytes() > held.nbytes
    if forget_peak():
        before = peak_bytes()
        del held
        more = np.ones(2**26)
        assert peak_bytes() >= before + more.nbytes // 2


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("bits", [16, 8])
def test_a_filled_memory_is_as_long_as_a_heard_one(backend: str, bits: int) -> None:
    if backend == "mlx":
        pytest.importorskip("mlx.core", reason="MLX is not installed")
    model = load_model("random-tiny", backend, horizon=0, bits=bits)
    memory = filled_memory(model, 61.0, 8)
    tokens, prefix = tokens_in(model.config, 61.0), len(model.prompt.prefix_ids)
    assert tokens == 763 and memory.tokens == tokens
    assert memory.slots == prefix + 11 * 8 + 8  # of 763 tokens, 59 of them in the last interval
    assert memory.bytes == memory.slots * model.bytes_per_slot
    assert are_times(memory.times, tokens, 61.0)
    first, rest = answering.answer_once(model.backend, memory, [3, 4], 2)
    assert first > 0 and len(rest) == 2


def fake_results(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """Measurements are counted and not made."""
    made: list[tuple[str, dict]] = []

    def measure(kind: str, settings: dict, limit: float | None = None) -> dict:
        made.append((kind, settings))
        if settings.get("horizon", 1) is None and kind == "listening":
            raise MeasurementError("no room")
        share = {"encoder": 0.5, "decoder": 0.7}
        hours = settings.get("minutes", 1) if kind == "listening" else 1
        return {
            "heard_seconds": hours * 60.0,
            "seconds": hours * 2.0,
            "processor_seconds": hours * 2.0,
            "peak_bytes": 300,
            "gpu_peak_bytes": None,
            "memory_bytes": 100,
            "formula_bytes": 100,
            "load_peak_bytes": 5,
            "slots": 7,
            "stages": dict.fromkeys(STAGES, 1.0),
            "marks": [],
            "first_seconds": 0.05,
            "first_seconds_median": 0.06,
            "token_seconds": 0.01,
            "token_seconds_median": 0.01,
            "recall": None,
            "matrix_rate": 1e9,
            "read_rate": 1e9,
            "operations": share,
            "shares": share,
            "share": 0.65,
            "answers": [
                {
                    "hours": 1,
                    "first_seconds": 1.0,
                    "first_operations": 5,
                    "token_seconds": 1.0,
                    "token_bytes": 9,
                    "times_limit": 1.5,
                }
            ],
            "rows": [
                {
                    "against": "transformers",
                    "seconds_of_sound": 60.0,
                    "ours_listen_seconds": 1.0,
                    "theirs_listen_seconds": 4.0,
                    "ours_first_seconds": 1.0,
                    "theirs_first_seconds": 2.0,
                    "at_once": 8,
                    "seconds": 2.0,
                    "peak_bytes": 300,
                }
            ],
        }

    monkeypatch.setattr(records, "in_child", measure)
    return made


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["listening", "--minutes", "1", "60", "--backend", "torch", "mlx", "--ratio", "8", "raw"], 8),
        (["answering", "--hours", "1", "10", "--memory-bits", "8"], 2),
        (["alternatives", "--against", "cache", "whisper"], 2),
        (["limits", "--horizon", "all"], 1),
    ],
)
def test_a_command_measures_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], count: int
) -> None:
    made = fake_results(monkeypatch)
    words = [*words, "--output", str(tmp_path / "out")]
    assert command.main(words) == 0
    assert len(made) == count == len(list((tmp_path / "out").glob("*.json")))
    assert command.main(words) == 0
    assert len(made) == count  # all of it was there
    next((tmp_path / "out").glob("*.json")).unlink()
    assert command.main(words) == 0
    assert len(made) == count + 1
    report = (tmp_path / "out" / "report.md").read_text()
    assert report in capsys.readouterr().out
    assert report.startswith("# Benchmarks\n") and f"## {words[0].capitalize()}" in report
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert tables and all(line.count("|") == tables[0].count("|") for line in tables if words[0] != "limits")
    record = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert list(record) == ["kind", "settings", "machine", "date", "result"] and record["kind"] == words[0]


def test_growth_is_reported_without_the_memorys_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_results(monkeypatch)
    assert command.main(["listening", "--minutes", "1", "60", "--output", str(tmp_path)]) == 0
    assert (
        "60 over 1 min: time a minute x 1.000, peak memory but for the memory's own bytes x 1.000"
        in (tmp_path / "report.md").read_text()
    )


def test_the_gpu_command_does_what_it_can_and_names_the_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_results(monkeypatch)
    assert command.main(["gpu", "--shape", "tiny", "--output", str(tmp_path)]) == 0
    assert [kind for kind, _ in made] == [kind for kind, _ in gpu.plan("tiny", "torch")]
    assert {settings["model"] for _, settings in made} == {"random-tiny"}
    found = {row["target"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["targets"]}
    assert len(found) == 8
    assert found["an hour heard, s"] | {"measured": 120.0, "met": False} == found["an hour heard, s"]
    assert found["time of ten hours over one"]["measured"] == 10.0 and found["time of ten hours over one"]["met"]
    assert (
        found["first token at ten hours, ms"]["met"] and not found["answering, times faster than the full cache"]["met"]
    )
    text = (tmp_path / "gpu.md").read_text()
    assert "| share of the matrix rate | at least 0.6 | 0.65 | yes |" in text
    monkeypatch.setattr(gpu, "SECONDS", 0.0)
    assert command.main(["gpu", "--shape", "tiny", "--output", str(tmp_path / "late")]) == 0
    assert (tmp_path / "late" / "gpu.md").read_text().count("not measured") == 8


def test_a_child_measures_listening_and_its_numbers_agree(tmp_path: Path) -> None:
    settings = {"model": "random-tiny", "backend": "torch", "ratio": 8, "horizon": 0, "bits": 16, "minutes": 0.6}
    result = Records(tmp_path).get("listening", settings)
    assert result["heard_seconds"] == 36.0 and result["tokens"] == 450 and result["intervals"] == 8
    assert result["memory_bytes"] == result["formula_bytes"] == result["slots"] * 2 * 3 * 2 * 16 * 4
    assert list(result["stages"]) == STAGES and all(s > 0 for s in result["stages"].values())
    assert result["peak_bytes"] > result["memory_bytes"] and result["load_peak_bytes"] > 0
    assert [mark["heard"] for mark in result["marks"]] == sorted(mark["heard"] for mark in result["marks"])
    assert Records(tmp_path).find("listening", settings) == result


def test_recordings_together_are_measured_by_turns(tmp_path: Path) -> None:
    words = ["together", "--model", "random-tiny", "--minutes", "0.1", "--count", "3", "--at-once", "2", "1"]
    assert command.main([*words, "--output", str(tmp_path)]) == 0
    (record,) = records.Records(tmp_path).all("together")
    assert record.result["heard_seconds"] == pytest.approx(18) and [r["at_once"] for r in record.result["rows"]] == [
        1,
        2,
    ]
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in record.result["rows"])
    assert "| random-tiny | torch | 8 | 3 | 0.1 | 2 |" in (tmp_path / "report.md").read_text()


def test_limits_count_what_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matrix_rate", "read_rate"):
        monkeypatch.setattr(limits, name, lambda backend: 1e9)
    result = limits.measure("random-tiny", "torch", 8, 0.6, [0.05], horizon=0)
    assert result["tokens"] == 450
    one = result["operations"]["encoder"] / 2  # 36 s are two windows of 30
    assert one == 2 * 3000 * 240 * 32 + 2 * 1500 * 96 * 32 + 2 * (
        8 * 1500 * 32 * 32 + 4 * 1500**2 * 32 + 4 * 1500 * 32 * 64
    )
    assert result["operations"]["decoder"] > 0 and set(result["shares"]) == {"encoder", "adapter", "decoder"}
    assert result["answers"][0]["slots"] == 1 + 35 * 8 + 2  # of 2250 tokens, 10 of them in the last interval


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_the_full_cache_holds_every_token_and_the_rows_say_so(backend: str) -> None:
    if backend == "mlx":
        pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    rows = alternatives.measure("random-tiny", backend, 8, "cache", [0.1, 1.0], horizon=0)["rows"]
    assert [row["tokens"] for row in rows] == [75, 750]
    prefix, slot = 1, 2 * 3 * 2 * 16 * 4  # bytes of a slot: two, layers, heads, head_dim, float32
    assert [row["theirs_bytes"] for row in rows] == [(prefix + n) * slot for n in (75, 750)]
    assert [row["ours_bytes"] for row in rows] == [(prefix + n) * slot for n in (10, 10 + 10 * 8 + 5)]
    assert all(value > 0 for row in rows for value in row.values() if not isinstance(value, str))


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "listening-x.json").write_text("{")
    with pytest.raises(OutputError, match="no measurement"):
        Records(tmp_path).all("listening")
    for words in (["--ratio", "half"], ["--horizon", "far"], ["--backend", "jax"]):
        with pytest.raises(SystemExit) as stop:
            command.main(["listening", *words])
        assert stop.value.code == 2
    capsys.readouterr()
    code = command.main(
        ["listening", "--model", str(tmp_path / "none"), "--minutes", "1", "--output", str(tmp_path / "out")]
    )
    assert code == 2 and "listening failed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.records",
            "listening",
            json.dumps({"model": "none", "backend": "torch", "ratio": 8, "minutes": 1}),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "no checkpoint folder none" in run.stderr and "Traceback" not in run.stderr
