"""A folder of recordings of one length, heard one after the other and several at once, by turns in one process."""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.listening import settings, synchronizer
from benchmarks.machine import forget_peak, peak_bytes
from benchmarks.models import OWN_HORIZON, Horizon, load_model
from benchmarks.records import Record, Records, Result, markdown_table
from benchmarks.sound import RepeatedSound
from speech_xl.example import EXAMPLE
from speech_xl.listening import Listening
from speech_xl.listening_together import listen_together
from speech_xl.model import SpeechModel
from speech_xl.schedule import Ratio

ROUNDS = 3  # of which the fastest counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line, beside those that all commands have."""
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.25, 2], metavar="M", help="of each recording")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="recordings in the folder")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="heard as one batch")


def run(records: Records, arguments: argparse.Namespace) -> None:
    """Measure what the arguments name and is not there yet."""
    for minutes in arguments.minutes:
        for backend in arguments.backend:
            for ratio in arguments.ratio:
                folder = {"minutes": minutes, "count": arguments.count, "at_once": sorted(arguments.at_once)}
                records.get("together", settings(arguments, backend, ratio) | folder)


def measure(
    model: str,
    backend: str,
    ratio: Ratio,
    minutes: float,
    count: int,
    at_once: list[int],
    horizon: Horizon = OWN_HORIZON,
    bits: int = 16,
) -> Result:
    """{"rows": [...]}, a row for each number at once: its fastest seconds, and the peak memory up to then."""
    speech_model = load_model(model, backend, horizon, bits)
    hear(speech_model, ratio, minutes, 1, 1)  # warms up
    seconds: dict[int, list[float]] = {number: [] for number in at_once}
    peaks: dict[int, int] = {}
    for number in ROUNDS * at_once:
        forget_peak()
        seconds[number].append(hear(speech_model, ratio, minutes, count, number))
        peaks[number] = max(peaks.get(number, 0), peak_bytes())
    rows = [{"at_once": n, "seconds": min(seconds[n]), "peak_bytes": peaks[n]} for n in at_once]
    return {"device": speech_model.backend.device, "heard_seconds": count * minutes * 60, "rows": rows}


def hear(model: SpeechModel, ratio: Ratio, minutes: float, count: int, at_once: int) -> float:
    """-> seconds that it took."""
    wait = synchronizer(model.backend)
    sound = RepeatedSound(EXAMPLE, minutes * 60)
    wait()
    started = time.perf_counter()
    for _ in listen_together((Listening(model, sound, ratio) for _ in range(count)), at_once):
        pass
    wait()
    return time.perf_counter() - started


def table(records: list[Record]) -> str:
    """One row for each number at once."""
    flat = [
        Record(r.kind, r.settings, r.machine, r.date, r.result | {"row": row, "first": r.result["rows"][0]})
        for r in sorted(records, key=lambda r: (r.settings["model"], r.settings["backend"], r.settings["minutes"]))
        for row in r.result["rows"]
    ]
    return markdown_table(COLUMNS, flat)


def _of_row(name: str) -> Any:
    return lambda r: r.result["row"][name]


COLUMNS = {
    "model": lambda r: r.settings["model"],
    "backend": lambda r: r.settings["backend"],
    "ratio": lambda r: "raw" if r.settings["ratio"] is None else r.settings["ratio"],
    "recordings": lambda r: r.settings["count"],
    "minutes each": lambda r: f"{r.settings['minutes']:g}",
    "at once": _of_row("at_once"),
    "times real time": lambda r: r.result["heard_seconds"] / r.result["row"]["seconds"],
    "against the first row": lambda r: r.result["first"]["seconds"] / r.result["row"]["seconds"],
    "peak MiB": lambda r: r.result["row"]["peak_bytes"] / 2**20,
}
