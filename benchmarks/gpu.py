"""The whole benchmark of a GPU in one command: random weights of the 7B shape, in less than ten minutes.

What matters most comes first, each part in a fresh process; what no time is left for is said to be missing, and what was
measured is not measured again by the next run. At the end stand the targets, and whether they were met. On a machine
without a GPU a tiny shape shows that the command works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.listening import working_bytes
from benchmarks.machine import machine_in_words
from benchmarks.records import MeasurementError, Records, Result, Settings

SECONDS = 570.0  # for all of it
SHAPES = {"7b": ("random-7b", 60.0), "tiny": ("random-tiny", 1.0)}  # model, and how long its hour is, in minutes
HOUR, TEN_HOURS = 1, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line, beside those that all commands have."""
    parser.add_argument("--shape", choices=tuple(SHAPES), default="7b", help="tiny: for a machine without a GPU")


def plan(shape: str, backend: str) -> list[tuple[str, Settings]]:
    """(kind, settings) of every part, what matters most first."""
    model, hour = SHAPES[shape]
    shared = {"model": model, "backend": backend, "ratio": 8}
    hours = [n * hour / 60 for n in (HOUR, TEN_HOURS)]

    def with_horizon(horizon: int | None, **more: Any) -> Settings:
        return shared | {"horizon": horizon, "bits": 16} | more

    return [
        ("limits", with_horizon(0, minutes=hour / 6, hours=hours)),
        ("listening", with_horizon(0, minutes=hour)),
        *[("answering", with_horizon(0, hours=length)) for length in hours],
        ("listening", with_horizon(None, minutes=hour)),
        ("alternatives", with_horizon(0, against="cache", minutes=[hour / 6, hour])),
        ("listening", with_horizon(0, minutes=TEN_HOURS * hour)),
        ("limits", with_horizon(None, minutes=hour / 6, hours=hours[-1:])),
        ("listening", with_horizon(0, minutes=hour / 60)),
        ("together", with_horizon(None, minutes=hour / 10, count=8, at_once=[1, 8])),
    ]


def run(records: Records, arguments: argparse.Namespace) -> None:
    """Every part that time is left for; a part that fails is reported, and the next one runs."""
    end = time.monotonic() + SECONDS
    for kind, settings in plan(arguments.shape, arguments.backend[0]):
        left = end - time.monotonic()
        try:
            if left < 1:
                raise MeasurementError(f"{kind} was left out, no time is left ({settings}); run it again to continue.")
            print(f"{kind}: {settings}", file=sys.stderr)
            records.get(kind, settings, limit=left)
        except MeasurementError as error:
            print(error, file=sys.stderr)
    parts = plan(arguments.shape, arguments.backend[0])
    rows = targets([records.find(kind, settings) for kind, settings in parts])
    title = f"Shape {arguments.shape} on {arguments.backend[0]}; {machine_in_words(records.machine)}."
    records.write(
        "gpu.json", json.dumps({"shape": arguments.shape, "machine": records.machine, "targets": rows}, indent=1) + "\n"
    )
    records.write("gpu.md", f"# The targets of a GPU\n\n{title}\n\n{table(rows)}")
    print(table(rows))


def targets(results: Sequence[Result | None]) -> list[dict[str, Any]]:
    """Each target with what was measured, from the results of `plan`'s parts; None where one is missing."""
    limit, hour, _, asked, _, other, ten, *_ = results
    per_hour = hour and hour["seconds"] / hour["heard_seconds"] * 3600
    ten_over_one = ten and hour and ten["seconds"] / hour["seconds"]
    memory = ten and hour and working_bytes(ten) / working_bytes(hour)
    row = other and other["rows"][-1]
    found: list[tuple[str, Any, float, str]] = [
        ("an hour heard, s", per_hour, 3.0, "most"),
        ("first token at ten hours, ms", asked and asked["first_seconds"] * 1000, 60.0, "most"),
        (
            "a token at ten hours, times weights and memory read once",
            limit and limit["answers"][-1]["times_limit"],
            1.3,
            "most",
        ),
        ("share of the matrix rate", limit and limit["share"], 0.6, "least"),
        ("time of ten hours over one", ten_over_one, 10.3, "most"),
        ("peak memory of ten hours over one, the memory's bytes apart", memory, 1.05, "most"),
        (
            "listening, times faster than the full cache",
            row and row["theirs_listen_seconds"] / row["ours_listen_seconds"],
            3.0,
            "least",
        ),
        (
            "answering, times faster than the full cache",
            row and row["theirs_first_seconds"] / row["ours_first_seconds"],
            5.0,
            "least",
        ),
    ]
    return [
        {
            "target": name,
            "measured": value,
            "bound": bound,
            "sense": sense,
            "met": None if value is None else (value <= bound if sense == "most" else value >= bound),
        }
        for name, value, bound, sense in found
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """One row a target."""
    lines = ["| target | bound | measured | met |", "|---|---|---|---|"]
    for row in rows:
        measured = "not measured" if row["measured"] is None else f"{row['measured']:.3g}"
        met = "" if row["met"] is None else "yes" if row["met"] else "no"
        lines.append(f"| {row['target']} | at {row['sense']} {row['bound']:g} | {measured} | {met} |")
    return "\n".join(lines) + "\n"
