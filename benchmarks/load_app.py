"""`python -m benchmarks.load_app URL`: many visitors at once against a running app, through gradio_client.

Every visitor has a recording of a length of their own, hears it, asks, and checks that the answer is about that
length: anything else is cross-talk. Printed: errors, cross-talk, time to an answer alone, under load and (with --long)
while somebody else's long recording is being heard, and the app's resident memory before and after (with --pid).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile as sf
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from benchmarks.sound import write_long_recording

RATE = 16_000
QUESTION = "When does it begin?"  # the answer does not matter, its time and its length of recording do
SHORTEST, STEP = 4.0, 0.5  # seconds: visitor i's recording lasts SHORTEST + i * STEP


def resident_bytes(pid: int | None) -> int | None:
    """Resident memory of a process, as Linux tells it; None elsewhere."""
    status = Path(f"/proc/{pid}/status")
    if pid is None or not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


class Visitor:
    """One client: what it did, what went wrong, and when."""

    def __init__(self, number: int, url: str, folder: Path, questions: int):
        self.seconds = SHORTEST + number * STEP
        self.url, self.questions = url, questions
        self.path = folder / f"visitor{number}.wav"
        noise = np.random.default_rng(number).standard_normal(round(self.seconds * RATE))
        sf.write(self.path, (0.05 * noise).astype(np.float32), RATE)
        self.errors: list[str] = []
        self.crossed = 0
        self.listen_seconds: float | None = None
        self.answer_seconds: list[float] = []

    def visit(self, gate: threading.Barrier | None = None) -> None:
        """Upload, listen and ask as one visitor does; what went wrong is kept, not raised."""
        try:
            client = Client(self.url, verbose=False)
            if gate:
                gate.wait(timeout=300)
            started = time.monotonic()
            heard = json.loads(client.predict(handle_file(str(self.path)), "", api_name="/listen"))
            self.listen_seconds = time.monotonic() - started
            self._check(heard["seconds"])
            for _ in range(self.questions):
                started = time.monotonic()
                said = json.loads(client.predict(QUESTION, api_name="/ask"))
                self.answer_seconds.append(time.monotonic() - started)
                self._check(said["heard_seconds"])
            client.close()
        except Exception as error:  # whatever it is, it is what this measures
            self.errors.append(f"{type(error).__name__}: {error}")

    def _check(self, seconds: float) -> None:
        if abs(seconds - self.seconds) > STEP / 2:
            self.crossed += 1


def answers_beside_a_long_recording(visitor: Visitor, minutes: float) -> list[float]:
    """Seconds to each of a visitor's answers while another client's recording of `minutes` is being heard."""
    path = visitor.path.with_name("long.flac")
    write_long_recording(path, minutes)
    visitor.answer_seconds.clear()
    other = Client(visitor.url, verbose=False)
    hearing = other.submit(handle_file(str(path)), "", api_name="/listen")
    while not hearing.done():
        try:
            other.predict(QUESTION, api_name="/ask")
            break
        except AppError:  # nothing of it has been heard yet
            time.sleep(0.2)
    visitor.visit()
    if hearing.done():
        visitor.errors.append(f"{minutes:g} minutes ended before all questions were asked; give more.")
    other.close()  # leaves in mid-listening
    return visitor.answer_seconds


def main() -> None:
    """Run all visitors at once and print what they saw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_app", description=__doc__.partition("\n")[0])
    parser.add_argument("url", help="a running app, like http://127.0.0.1:7860")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--pid", type=int, help="the app's process, to read its memory")
    parser.add_argument("--long", type=float, default=0.0, metavar="MINUTES", help="of somebody else's recording")
    parser.add_argument("--rest", type=float, default=20.0, help="seconds to wait before memory is read again")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone = Visitor(0, chosen.url, Path(folder), chosen.questions)
        alone.visit()  # warms the app up, too
        alone_seconds = statistics.median(alone.answer_seconds) if alone.answer_seconds else None
        before = resident_bytes(chosen.pid)
        visitors = [Visitor(i, chosen.url, Path(folder), chosen.questions) for i in range(chosen.visitors)]
        gate = threading.Barrier(chosen.visitors)
        started = time.monotonic()
        with ThreadPoolExecutor(chosen.visitors) as pool:
            for visitor in visitors:
                pool.submit(visitor.visit, gate)
        took = time.monotonic() - started
        beside = answers_beside_a_long_recording(alone, chosen.long) if chosen.long else []
    time.sleep(chosen.rest)
    after = resident_bytes(chosen.pid)
    answers = sorted(s for v in visitors for s in v.answer_seconds)
    result = {
        "visitors": chosen.visitors,
        "errors": [e for v in [alone, *visitors] for e in v.errors],
        "cross_talk": sum(v.crossed for v in visitors),
        "seconds": round(took, 1),
        "answer_alone_s": alone_seconds and round(alone_seconds, 3),
        "answer_median_s": round(statistics.median(answers), 3) if answers else None,
        "answer_worst_s": round(answers[-1], 3) if answers else None,
        "answer_beside_long_s": [round(s, 3) for s in beside],
        "rss_before_mib": before and round(before / 2**20),
        "rss_after_mib": after and round(after / 2**20),
        "rss_growth": before and after and round(after / before - 1, 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
