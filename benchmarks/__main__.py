"""`python -m benchmarks`: how fast a recording is heard, and how much memory that takes as it grows.

Each measurement is a process of its own, so that peak memory is one recording's and nothing is warm from
the one before. Prints a table; the last lines are the ratios that matter.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import soundfile as sf

from speech_xl.backend import BACKENDS
from speech_xl.config import SAMPLING_RATE
from speech_xl.example import EXAMPLE, suggested_questions


def write_long_recording(path: Path, source: Path, minutes: float) -> None:
    """Repeat `source` to `minutes` of 16 kHz FLAC, block by block."""
    samples, rate = sf.read(source, dtype="float32", always_2d=True)
    if rate != SAMPLING_RATE:
        raise SystemExit(f"{source} must be a 16 kHz recording, not {rate} Hz.")
    mono = samples.mean(1)
    left = int(minutes * 60 * SAMPLING_RATE)
    with sf.SoundFile(path, "w", SAMPLING_RATE, 1, "PCM_16") as file:
        while left > 0:
            file.write(mono[:left])
            left -= len(mono)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Hear one recording in this process."""
    from speech_xl.conversation import Listening, ask
    from speech_xl.model import SpeechModel

    model = SpeechModel.load(arguments.model, arguments.backend)
    started = time.monotonic()
    listening = Listening(model, arguments.measure, ratio=arguments.ratio)
    for _ in listening:
        pass
    seconds = time.monotonic() - started
    memory = listening.memory
    started = time.monotonic()
    for _ in ask(model, memory, suggested_questions(model.config)[0]):
        pass
    config = model.config
    return {
        "seconds_heard": memory.seconds,
        "listen_seconds": seconds,
        "answer_seconds": time.monotonic() - started,
        "memory_bytes": memory.bytes,
        "formula_bytes": memory.slots * config.kv_values_per_slot * model.backend.itemsize,
        # Kilobytes on Linux, bytes on a Mac.
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1024 if platform.system() == "Linux" else 1),
    }


def main() -> int:
    """Measure what the flags name and print the table -> the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[30, 300], help="lengths to hear")
    parser.add_argument("--backend", nargs="+", default=["auto"], choices=("auto", *BACKENDS))
    parser.add_argument("--model", help="checkpoint folder or Hub id (default: small, else nano)")
    parser.add_argument("--ratio", type=int, default=8)
    parser.add_argument("--source", type=Path, default=EXAMPLE, help="16 kHz recording to repeat")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        arguments.backend = arguments.backend[0]
        print(json.dumps(measure(arguments)))
        return 0

    results: dict[tuple[str, float], dict[str, float]] = {}
    print("| backend | minutes | times real time | answer s | peak MiB | memory MiB | bytes as the formula |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            path = Path(folder) / "recording.flac"
            write_long_recording(path, arguments.source, minutes)
            for backend in arguments.backend:
                command = [sys.executable, "-m", "benchmarks", "--measure", str(path), "--backend", backend]
                command += ["--ratio", str(arguments.ratio)]
                command += ["--model", arguments.model] if arguments.model else []
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                r = results[backend, minutes] = json.loads(output.splitlines()[-1])
                print(
                    f"| {backend} | {minutes:g} | {r['seconds_heard'] / r['listen_seconds']:.0f} | {r['answer_seconds']:.2f} "
                    f"| {r['peak_bytes'] / 2**20:.0f} | {r['memory_bytes'] / 2**20:.1f} "
                    f"| {'yes' if r['memory_bytes'] == r['formula_bytes'] else 'NO'} |",
                    flush=True,
                )
    shortest, longest = min(arguments.minutes), max(arguments.minutes)
    for backend in arguments.backend:
        a, b = results[backend, shortest], results[backend, longest]
        ratio = (b["peak_bytes"] - b["memory_bytes"]) / (a["peak_bytes"] - a["memory_bytes"])
        print(f"{backend}: peak memory of {longest:g} min over {shortest:g} min, memory's own bytes apart: {ratio:.3f}")
    first, *others = arguments.backend
    for other, minutes in itertools.product(others, arguments.minutes):
        ratio = results[other, minutes]["listen_seconds"] / results[first, minutes]["listen_seconds"]
        print(f"listening time of {other} over {first} at {minutes:g} min: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
