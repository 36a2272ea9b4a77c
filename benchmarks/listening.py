"""How fast a recording is heard, and how much memory that takes, against its length.

Peak memory is counted from when the model is loaded: loading has a peak of its own, which does not grow. The memory's
own bytes are reported apart from it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import forget_peak, peak_bytes, resident_bytes
from benchmarks.models import OWN_HORIZON, Horizon, load_model
from benchmarks.records import Record, Records, Result, markdown_table
from benchmarks.sound import RepeatedSound
from benchmarks.stages import Stages
from speech_xl.conversation import Listening
from speech_xl.example import EXAMPLE
from speech_xl.schedule import Ratio

SECONDS_BETWEEN_LINES = 10
MARKS, MARK_MINUTES = 20, 5.0  # times and memory are noted on the way: so often, and no less often than that


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line, beside those that all commands have."""
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60], metavar="M", help="lengths to hear")


def run(records: Records, arguments: argparse.Namespace) -> None:
    """Measure what the arguments name and is not there yet."""
    for minutes in arguments.minutes:
        for backend in arguments.backend:
            for ratio in arguments.ratio:
                records.get("listening", settings(arguments, backend, ratio) | {"minutes": minutes})


def settings(arguments: argparse.Namespace, backend: str, ratio: Ratio) -> dict[str, Any]:
    """What listening and answering have in common."""
    return {
        "model": arguments.model,
        "backend": backend,
        "ratio": ratio,
        "horizon": arguments.horizon,
        "bits": arguments.memory_bits,
    }


def synchronizer(backend: Any) -> Any:
    """Waits for the device, where it works behind the program's back."""
    if backend.device.startswith("cuda"):
        import torch

        return torch.cuda.synchronize
    return lambda: None


def measure(
    model: str,
    backend: str,
    ratio: Ratio,
    minutes: float,
    horizon: Horizon = OWN_HORIZON,
    bits: int = 16,
    source: str = str(EXAMPLE),
) -> Result:
    """Hear one recording in this process. Bytes, seconds, and counts; `stages` as stages.py has them."""
    started = time.perf_counter()
    speech_model = load_model(model, backend, horizon, bits)
    load_seconds = time.perf_counter() - started
    stages = Stages(synchronizer(speech_model.backend))
    stages.watch_reader()
    stages.watch_backend(speech_model.backend)
    load_peak, loaded = peak_bytes(), resident_bytes()
    own_peak = forget_peak()
    on_gpu = speech_model.backend.device.startswith("cuda")
    if on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
    listening = Listening(speech_model, RepeatedSound(Path(source), minutes * 60), ratio=ratio)
    marks: list[dict[str, Any]] = []
    told = 0.0
    step = min(minutes * 60 / MARKS, MARK_MINUTES * 60)
    started, processor = time.perf_counter(), time.process_time()
    for heard in listening:
        if heard.seconds >= (len(marks) + 1) * step:
            elapsed = time.perf_counter() - started
            marks.append(
                {
                    "heard": heard.seconds,
                    "seconds": elapsed,
                    "resident_bytes": resident_bytes(),
                    "peak_bytes": peak_bytes(),
                    "memory_bytes": heard.memory_bytes,
                }
            )
            if elapsed > told + SECONDS_BETWEEN_LINES:
                print(f"{model} on {backend}: {heard.seconds / 60:.1f} min heard in {elapsed:.0f} s", file=sys.stderr)
                told = elapsed
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    memory, config = listening.memory, speech_model.config
    return {
        "device": speech_model.backend.device,
        "load_seconds": load_seconds,
        "heard_seconds": memory.seconds,
        "seconds": seconds,
        "processor_seconds": processor,
        "stages": stages.report(config.recognizer is not None),
        "tokens": memory.tokens,
        "intervals": memory.intervals,
        "slots": memory.slots,
        "memory_bytes": memory.bytes,
        "formula_bytes": memory.slots * speech_model.bytes_per_slot,
        "load_peak_bytes": load_peak,
        "loaded_bytes": loaded,
        "peak_bytes": peak_bytes(),
        "peak_is_of_listening_alone": own_peak,
        "gpu_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "marks": marks,
    }


def working_bytes(result: Result) -> int:
    """Peak memory without the memory that is kept."""
    return (result["gpu_peak_bytes"] or result["peak_bytes"]) - result["memory_bytes"]


def table(records: list[Record]) -> str:
    """Rows by model, backend, ratio, horizon and length; below them growth from the shortest length to each other."""
    records = sorted(records, key=lambda r: [str(r.settings[n]) for n in GROUP] + [r.settings["minutes"]])
    text = markdown_table(COLUMNS, records)
    for group in dict.fromkeys(tuple(str(r.settings[n]) for n in GROUP) for r in records):
        same = [r for r in records if tuple(str(r.settings[n]) for n in GROUP) == group]
        for longer in same[1:]:
            first, last = same[0].result, longer.result
            time_ratio = last["seconds"] / first["seconds"] / (last["heard_seconds"] / first["heard_seconds"])
            text += (
                f"\n- {group[0]}, {group[1]}, ratio {group[2]}, horizon {group[3]}, {group[4]} bits: {longer.settings['minutes']:g} over "
                f"{same[0].settings['minutes']:g} min: time a minute x {time_ratio:.3f}, peak memory but for the memory's "
                f"own bytes x {working_bytes(last) / working_bytes(first):.3f}"
            )
    return text + "\n\n" + "".join(map(on_the_way, records))


def on_the_way(record: Record) -> str:
    """A line about one recording that was long: its working memory at 20 minutes, and at its end."""
    settings, result = record.settings, record.result
    early = next((mark for mark in result["marks"] if mark["heard"] >= 20 * 60), None)
    if early is None or settings["minutes"] < 60:
        return ""
    first, last = (r["peak_bytes"] - r["memory_bytes"] for r in (early, result))
    return (
        f"- {settings['model']}, {settings['backend']}, within the {settings['minutes']:g} min: peak memory but for the memory's own "
        f"bytes {first / 2**20:.0f} MiB at {early['heard'] / 60:.0f} min and {last / 2**20:.0f} MiB at the end, x {last / first:.3f}\n"
    )


GROUP = ("model", "backend", "ratio", "horizon", "bits")


def _stage(*names: str) -> Any:
    return lambda r: sum(r.result["stages"].get(name, 0.0) for name in names) / r.result["heard_seconds"] * 3600


COLUMNS = {
    "model": lambda r: r.settings["model"],
    "backend": lambda r: r.settings["backend"],
    "ratio": lambda r: "raw" if r.settings["ratio"] is None else r.settings["ratio"],
    "horizon": lambda r: "all" if r.settings["horizon"] is None else r.settings["horizon"],
    "minutes": lambda r: f"{r.settings['minutes']:g}",
    "times real time": lambda r: r.result["heard_seconds"] / r.result["seconds"],
    "times, by processor time": lambda r: r.result["heard_seconds"] / r.result["processor_seconds"],
    "s an hour: decode": _stage("decode"),
    "features": _stage("features"),
    "encoder": _stage("encoder"),
    "adapter, recogniser": _stage("adapter", "recognizer"),
    "decoder": _stage("decoder"),
    "memory MiB": lambda r: r.result["memory_bytes"] / 2**20,
    "bytes as the formula": lambda r: "yes" if r.result["memory_bytes"] == r.result["formula_bytes"] else "NO",
    "peak MiB without it": lambda r: working_bytes(r.result) / 2**20,
    "peak of loading MiB": lambda r: r.result["load_peak_bytes"] / 2**20,
}
