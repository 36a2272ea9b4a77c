"""Batches on Ray: what comes of them, and what is said when Ray, or one of its workers, is not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from speech_xl.batch import on_ray, work
from speech_xl.cli import main
from speech_xl.commands.batch import build_parser, parse_cluster, without_guess
from speech_xl.errors import BackendError, OutputError, ScheduleError
from speech_xl.memory import read_header
from tests.tiny import write_sound


def test_two_ray_workers_give_what_one_process_gives(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra ray)")
    (tmp_path / "talks").mkdir()
    for name, seconds in (("one.wav", 2.5), ("two.wav", 3.0)):
        write_sound(tmp_path / "talks" / name, seconds)
    (tmp_path / "talks" / "bad.wav").write_text("this is no sound")
    (tmp_path / "questions.txt").write_text("What drink is order 28?\nWhat size is order 86?")
    words = ["batch", str(tmp_path / "talks"), "--questions", str(tmp_path / "questions.txt"), "--transcribe"]
    words += ["--model", "nano", "--backend", "torch"]
    here, there = (tmp_path / name for name in ("here", "there"))
    assert main([*words, "--output", str(here)]) == 0
    code = main([*words, "--output", str(there), "--ray", "--workers", "2"])
    if "timed out during startup" in capsys.readouterr().err:
        pytest.skip("Ray gives itself 30 seconds to start, and this machine is too busy for that")
    assert code == 0
    assert (here / "results.jsonl").read_bytes() == (there / "results.jsonl").read_bytes()
    memories = [path.relative_to(here) for path in here.rglob("*.sxl")]
    assert len(memories) == 2
    for memory in memories:
        assert read_header(here / memory) == read_header(there / memory)
        arrays, others = load_file(here / memory), load_file(there / memory)
        assert all(np.array_equal(array, others[name]) for name, array in arrays.items())


class FakeRay:
    """Ray as far as events need it; a stream is a list of what comes, errors included."""

    class exceptions:
        class RayActorError(Exception): ...

        class RayTaskError(Exception):
            cause: Exception

    @staticmethod
    def wait(streams: list, num_returns: int) -> tuple[list, list]:
        return streams[-num_returns:], streams[:-num_returns]

    @staticmethod
    def get(event: object) -> object:
        if isinstance(event, Exception):
            raise event
        return event


def test_a_worker_that_dies_does_not_stop_the_others() -> None:
    dying = [[{"kind": "memory"}], FakeRay.exceptions.RayActorError("The actor died\nunexpectedly")]
    living = [work.Done("a.wav"), work.Done("b.wav")]
    came = []
    with pytest.raises(BackendError, match=r"ended early \(The actor died\); .* run the same command again"):
        for event in on_ray.events_of(FakeRay, [iter(living), iter(dying)], 3):
            came.append(event)  # noqa: PERF402 - it ends with an exception
    assert came == [[{"kind": "memory"}], *living]
    assert list(on_ray.events_of(FakeRay, [iter(living)], 2)) == living


def test_what_a_worker_cannot_write_is_the_commands_own_error() -> None:
    error = FakeRay.exceptions.RayTaskError()
    error.cause = OutputError("The disk is full.")
    with pytest.raises(OutputError, match="full"):
        list(on_ray.events_of(FakeRay, [iter([error])], 1))
    error.cause = KeyError("a mistake of ours")
    with pytest.raises(FakeRay.exceptions.RayTaskError):
        list(on_ray.events_of(FakeRay, [iter([error])], 1))


def test_a_ray_that_is_not_there_is_one_sentence() -> None:
    class Unreachable:
        @staticmethod
        def init(address: str, **options: object) -> None:
            raise ConnectionError(f"{address} refused\nand a page of advice")

    for address, sentence in (("10.0.0.1:1", "No Ray answers at 10.0.0.1:1"), ("local", "Ray does not start here")):
        with pytest.raises(BackendError, match=rf"{sentence} \({address} refused\); ") as refused:
            on_ray.start(Unreachable, on_ray.Cluster(address, 2, 0))
        assert "\n" not in str(refused.value)


def test_as_many_workers_as_there_is_room_for() -> None:
    def count(workers: int | None, gpus: float, jobs: int = 99) -> int:
        return on_ray.count_workers({"CPU": 16.0, "GPU": 3.0}, on_ray.Cluster("", workers, gpus), jobs)

    assert [count(None, 0), count(4, 0), count(None, 0, jobs=5)] == [16, 4, 5]
    assert [count(None, 1), count(8, 0.5), count(2, 0.5)] == [3, 6, 2]
    with pytest.raises(BackendError, match="lower --num-gpus"):
        count(None, 4)


def test_ray_is_missing_in_one_sentence(
    tiny_checkpoint: Path,
    recording: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    words = ["batch", str(recording), "--output", str(tmp_path), "--model", str(tiny_checkpoint), "--ray"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "extra 'ray'" in err and "Traceback" not in err


def test_the_ray_of_the_environment_is_taken_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", "10.0.0.1:6379")
    assert on_ray.Cluster("", None, 0).place == "10.0.0.1:6379"
    assert on_ray.Cluster("local", None, 0).place == "local"


@pytest.mark.parametrize(
    ("words", "ray", "inputs"),
    [
        (["--ray", "talks/", "--output", "out"], "", ["talks/"]),
        (["--ray", "talks", "more/**/*.m4a", "--output", "out"], "", ["talks", "more/**/*.m4a"]),
        (["talks", "--ray", "--output", "out"], "", ["talks"]),
        (["talks", "--output", "out", "--ray"], "", ["talks"]),
        (["--output", "out", "--ray", "10.0.0.1:6379", "talks"], "10.0.0.1:6379", ["talks"]),
        (["--ray", "auto", "talks", "--output", "out"], "auto", ["talks"]),
        (["talks", "--output", "out", "--ray=head:6379"], "head:6379", ["talks"]),
    ],
)
def test_only_an_address_behind_ray_is_taken_for_one(words: list[str], ray: str, inputs: list[str]) -> None:
    arguments = build_parser("speech-xl batch").parse_args(without_guess(words))
    assert (arguments.ray, arguments.input) == (ray, inputs)


@pytest.mark.parametrize("address", ["talks/", "ray://head:10001", "head", "http://head:6379"])
def test_an_address_that_is_none_is_a_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = build_parser("speech-xl batch")
    with pytest.raises(ScheduleError, match=r"no address that a batch can join; give the HOST:PORT"):
        parse_cluster(parser.parse_args(["talks", "--output", "out", f"--ray={address}"]))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ScheduleError, match="no address that a batch can join"):
        parse_cluster(parser.parse_args(["talks", "--output", "out", "--ray"]))
    assert parse_cluster(parser.parse_args(["talks", "--output", "out", "--ray", "local"])).place == "local"
