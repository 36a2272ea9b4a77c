"""The fuzz campaign: damaged audio, memories, configurations, weights and requests, as atheris makes them up.

Each target runs in processes of its own for its share of the time; one that ends early is a finding, and the next goes on
with its corpus. Corpora grow from seeds made at run time and stay in the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from reliability.findings import Report

NAMES = ("audio", "video", "sxl", "config", "foreign", "safetensors", "gguf", "bodies")
LONGEST_INPUT = 64 * 1024  # bytes
HANG = 60  # seconds for one input, on a busy machine
MOST_RESIDENT = 4096  # MiB: two for the input, and what the frameworks take
MOST_STARTS = 20
IN_MEMORY = Path("/dev/shm")  # where Linux keeps files in memory: every input is one for a moment
RUNS = re.compile(rb"^#(\d+)\s", re.MULTILINE)
COVERAGE = re.compile(rb"cov: (\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The campaign's own flags."""
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M", help="for each target (60)")
    parser.add_argument("--inputs", type=int, metavar="N", help="for each target, in place of a time")
    parser.add_argument("--of", nargs="+", default=NAMES, choices=NAMES, help="which targets")


def fuzz(name: str, folder: Path, seed: int, minutes: float, inputs: int | None, report: Report) -> dict[str, float]:
    """Run one target -> what was done."""
    folder.mkdir(parents=True)
    with TemporaryDirectory(prefix="speech-xl-fuzz-", dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None) as work:
        return _fuzz(name, folder, Path(work), seed, minutes, inputs, report)


def _fuzz(
    name: str, folder: Path, work: Path, seed: int, minutes: float, inputs: int | None, report: Report
) -> dict[str, float]:
    end = time.monotonic() + 60 * minutes
    runs = starts = coverage = 0
    used = os.times().children_user
    while (left := end - time.monotonic()) > 1 and starts < MOST_STARTS:
        limit = f"-max_total_time={left:.0f}" if inputs is None else f"-runs={inputs}"
        flags = [
            limit,
            f"-seed={seed + starts + 1}",
            f"-max_len={LONGEST_INPUT}",
            f"-timeout={HANG}",
            "-print_final_stats=1",
            f"-rss_limit_mb={MOST_RESIDENT}",
            f"-artifact_prefix={folder}/ended-{starts}-",
        ]
        command = [sys.executable, "-m", "reliability.fuzz_process", name, str(folder), str(work), *flags]
        ended = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True)
        (folder / f"said-{starts}.txt").write_bytes(ended.stdout + ended.stderr)
        found = RUNS.findall(ended.stderr)
        runs += int(found[-1]) if found else 0
        coverage = max([coverage, *map(int, COVERAGE.findall(ended.stderr))])
        starts += 1
        if ended.returncode:
            kept = ", ".join(path.name for path in folder.glob(f"ended-{starts - 1}-*")) or "no input kept"
            report.find(
                f"{name}: the process ended with {ended.returncode} ({kept}); {ended.stderr[-300:].decode(errors='replace')}"
            )
        if inputs is not None or not found:
            break
    for path in sorted((folder / "findings").glob("*.json")):
        said = json.loads(path.read_text())
        report.find(f"{name}: {said['kind']} at {' '.join(said['at'])}: {said['says']} ({said['input']})")
    size = len(list((folder / "corpus").iterdir())) if (folder / "corpus").exists() else 0
    seconds = os.times().children_user - used
    return {"inputs": runs, "corpus": size, "paths": coverage, "minutes": minutes, "processor seconds": round(seconds)}


def main(arguments: argparse.Namespace, output: Path) -> int:
    """Run the campaign -> 0 if it has found nothing."""
    report = Report("fuzz", arguments.seed, output)
    for name in arguments.of:
        figures = fuzz(name, output / name, arguments.seed, arguments.minutes, arguments.inputs, report)
        report.note(name, figures)
    return report.finish()
