"""The clients campaign: many clients of one server, each with a recording of its own, through OpenAI's official client.

Every answer is held against what the same server answered the same client alone. No error but 429 may come, and the
server's memory must not grow. It drives `speech-xl serve` as users start it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai
import soundfile as sf

from reliability.findings import Report
from tests.serving import ORDERS, encoded, input_audio, messages

ROOT = Path(__file__).parent.parent
QUESTIONS = (
    "What drink is order {}?",
    "What milk is in order {}?",
    "How many shots are in order {}?",
    "What roast is order {}?",
    "What size is order {}?",
    "What sweetener is in order {}?",
)
MARGIN = 0.3  # seconds of the recording around an order
NOISE = 1e-4  # full scale is 1: enough that no two clients' files are the same
SAMPLED = 5.0  # seconds between looks at the server's memory
SETTLED = 0.2  # of the time, after which memory must be flat
GROWTH = 1.10  # of the resident set from then to the end, at most
LONGEST_WAIT = 300.0  # seconds for one answer, fifty at a time on two cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The campaign's own flags."""
    parser.add_argument("--clients", type=int, default=50, metavar="N", help="at a time (50)")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="of all clients together (10)")
    parser.add_argument("--model", default="nano", help="that the server loads (nano)")


@dataclass
class Client:
    """One user: a recording, its questions, and the answers that are right for it."""

    number: int
    recording: bytes
    questions: list[str]
    api: openai.OpenAI
    model: str  # its name, as the server says it
    answers: dict[str, str] = field(default_factory=dict)  # question -> answer, alone
    transcript: str = ""
    memory: str = ""

    def ask(self, question: str, stream: bool, by_memory: bool) -> str:
        """The answer to a question about its recording, which is sent along or named by its memory."""
        parts = [] if by_memory else [input_audio(self.recording)]
        extra = {"speech_xl": {"memory": self.memory}} if by_memory else {}
        completions: Any = self.api.chat.completions  # whose types know nothing of a field beside OpenAI's
        said = completions.create(
            model=self.model, messages=messages(question, *parts), stream=stream, extra_body=extra
        )
        if stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in said if chunk.choices)
        self.memory = said.speech_xl["memory"]
        answer: str = said.choices[0].message.content
        return answer

    def transcribe(self) -> str:
        """The transcript of its recording, which is sent along."""
        return self.api.audio.transcriptions.create(model=self.model, file=(f"{self.number}.wav", self.recording)).text

    def forget(self) -> None:
        """The server hears the recording again next time."""
        if self.memory:
            self.api.delete(f"/memories/{self.memory}", cast_to=object)

    def learn(self) -> None:
        """What is right, while nobody else asks."""
        self.answers = {question: self.ask(question, False, False) for question in self.questions}
        self.transcript = self.transcribe()


def make_clients(count: int, url: str, seed: int) -> list[Client]:
    """Each with one order of the example, its own noise and its own API key."""
    orders = json.loads(ORDERS.with_suffix(".json").read_text())["orders"]
    samples, rate = sf.read(ORDERS, dtype="float32")
    made = []
    for number in range(count):
        order = orders[number % len(orders)]
        dice = np.random.default_rng([seed, number])
        part = samples[max(0, round((order["start"] - MARGIN) * rate)) : round((order["end"] + MARGIN) * rate)]
        heard = part + dice.normal(0, NOISE, len(part)).astype(np.float32)
        questions = [question.format(order["number"]) for question in QUESTIONS]
        api = openai.OpenAI(base_url=url, api_key=f"client-{number}", max_retries=0, timeout=LONGEST_WAIT)
        model = api.models.list().data[0].id
        made.append(Client(number, encoded(heard, rate=rate), questions, api, model))
    return made


class Crowd:
    """All clients at once, until the time is over."""

    def __init__(self, clients: list[Client], seed: int, seconds: float, report: Report):
        self._clients, self._seed, self._report = clients, seed, report
        self._end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, watch: threading.Thread) -> None:
        """All clients at once, and `watch` beside them, until the time is over."""
        threads = [threading.Thread(target=self._live, args=(client,)) for client in self._clients]
        for thread in (watch, *threads):
            thread.start()
        for thread in (*threads, watch):
            thread.join()

    def _live(self, client: Client) -> None:
        dice = random.Random(f"{self._seed}/{client.number}")
        while time.monotonic() < self._end:
            try:
                self._act(client, dice)
            except openai.RateLimitError as error:
                self._count("429")
                wait = float(error.response.headers.get("Retry-After", 1))
                time.sleep(min(max(0.0, self._end - time.monotonic()), wait * dice.uniform(0.5, 1.5)))
            except Exception as error:
                self._count("errors")
                self._find(f"client {client.number}: {type(error).__name__}: {str(error)[:500]}")

    def _act(self, client: Client, dice: random.Random) -> None:
        choice = dice.random()
        if choice < 0.1:
            client.forget()
            client.memory = ""
            self._count("memories deleted")
        elif choice < 0.25:
            self._check(client, "its transcript", client.transcribe(), client.transcript)
            self._count("transcripts")
        else:
            question = dice.choice(client.questions)
            by_memory = bool(client.memory) and dice.random() < 0.3
            said = client.ask(question, dice.random() < 0.5, by_memory)
            self._check(client, question, said, client.answers[question])
            self._count("answers")

    def _check(self, client: Client, what: str, said: str, expected: str) -> None:
        if said != expected:
            self._count("wrong")
            self._find(f"client {client.number}, {what}: {said!r} instead of {expected!r}")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _find(self, what: str) -> None:
        with self._lock:
            if len(self._report.findings) < 100:  # more of them say no more
                self._report.find(what)


def resident_mib(process: int) -> float:
    """MiB of RAM that a process has now (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


@contextmanager
def serving(model: str, output: Path, keys: list[str]) -> Iterator[tuple[str, int]]:
    """`speech-xl serve` -> (its address, its process)."""
    command = [sys.executable, "-m", "speech_xl", "serve", "--model", model, "--backend", "torch", "--port", "0"]
    command += ["--store", str(output / "store"), *(word for key in keys for word in ("--api-key", key))]
    log = output / "server.txt"
    environment = {
        name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"
    }  # all cores, as users do
    with (
        log.open("w") as said,
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said, stdout=said) as process,
    ):
        try:
            while not (found := re.search(r"http://\S+", log.read_text())):
                if process.poll() is not None:
                    raise RuntimeError(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.2)
            yield found[0].rstrip(";"), process.pid
        finally:
            process.terminate()


def main(arguments: argparse.Namespace, output: Path) -> int:
    """Run the campaign -> 0 if it has found nothing."""
    report = Report("clients", arguments.seed, output)
    keys = [f"client-{number}" for number in range(arguments.clients)]
    with serving(arguments.model, output, keys) as (url, process):
        clients = make_clients(arguments.clients, url, arguments.seed)
        for client in clients:
            client.learn()
        report.note("different answers", len({answer for client in clients for answer in client.answers.values()}))
        report.note("different transcripts", len({client.transcript for client in clients}))
        crowd = Crowd(clients, arguments.seed, 60 * arguments.minutes, report)
        sizes = [resident_mib(process)]

        def watch() -> None:
            end = time.monotonic() + 60 * arguments.minutes
            while time.monotonic() < end:
                time.sleep(min(SAMPLED, max(0.0, end - time.monotonic())))
                sizes.append(resident_mib(process))

        crowd.run(threading.Thread(target=watch))
        check_memory(sizes, report)
        report.note("clients", arguments.clients)
        report.note("minutes", arguments.minutes)
        report.note("requests", dict(crowd.counts))
    if "Traceback" in (said := (output / "server.txt").read_text()):
        report.find(f"the server's log has a traceback: {said[-2000:]}")
    return report.finish()


def check_memory(sizes: list[float], report: Report) -> None:
    """Resident MiB over time: from when it has settled on, the last fifth is not above the first."""
    settled = sizes[round(SETTLED * len(sizes)) :]
    fifth = max(1, len(settled) // 5)
    start, end = statistics.median(settled[:fifth]), statistics.median(settled[-fifth:])
    report.note(
        "resident MiB",
        {"before": round(sizes[0]), "settled": round(start), "end": round(end), "most": round(max(sizes))},
    )
    if end > GROWTH * start:
        report.find(f"the server's memory grew from {start:.0f} to {end:.0f} MiB")
