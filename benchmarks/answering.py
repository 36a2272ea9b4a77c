"""How long a question takes, against how much has been heard: the first token, and tokens a second after it.

The memory is filled, not heard (filling.py). Where a checkpoint recalls words before it answers, that is reported apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from typing import Any

from benchmarks.filling import filled_memory
from benchmarks.listening import settings
from benchmarks.machine import forget_peak, peak_bytes
from benchmarks.models import OWN_HORIZON, Horizon, load_model
from benchmarks.records import Record, Records, Result, markdown_table
from speech_xl.backend import Backend
from speech_xl.memory import AudioMemory
from speech_xl.recall import recall
from speech_xl.schedule import Ratio

QUESTION = "What was decided about the plan, and who will present it?"
TOKENS, ROUNDS = 16, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line, beside those that all commands have."""
    parser.add_argument("--hours", type=float, nargs="+", default=[0.1, 1, 10], metavar="H", help="heard before")


def run(records: Records, arguments: argparse.Namespace) -> None:
    """Measure what the arguments name and is not there yet."""
    for hours in arguments.hours:
        for backend in arguments.backend:
            for ratio in arguments.ratio:
                records.get("answering", settings(arguments, backend, ratio) | {"hours": hours})


def answer_once(backend: Backend, memory: AudioMemory, ids: list[int], tokens: int) -> tuple[float, list[float]]:
    """-> (seconds to the first token, seconds of each of the `tokens` that follow)."""
    started = time.perf_counter()
    steps = backend.answer(memory.state, ids, memory.position)
    marks = [started]
    try:
        for _ in range(tokens + 1):
            next(steps)
            marks.append(time.perf_counter())
    finally:
        steps.close()
    each = [after - before for before, after in itertools.pairwise(marks)]
    return each[0], each[1:]


def measure(
    model: str, backend: str, ratio: Ratio, hours: float, horizon: Horizon = OWN_HORIZON, bits: int = 16
) -> Result:
    """Ask a filled memory in this process. The first round warms up; of the others the fastest counts, and the median."""
    speech_model = load_model(model, backend, horizon, bits)
    memory = filled_memory(speech_model, hours * 3600, ratio)
    ids = speech_model.prompt.question_ids(QUESTION)
    forget_peak()
    answers = [answer_once(speech_model.backend, memory, ids, TOKENS) for _ in range(ROUNDS + 1)][1:]
    tokens = [second for _, seconds in answers for second in seconds]
    return {
        "device": speech_model.backend.device,
        "question_tokens": len(ids),
        "slots": memory.slots,
        "memory_bytes": memory.bytes,
        "formula_bytes": memory.slots * speech_model.bytes_per_slot,
        "first_seconds": min(first for first, _ in answers),
        "first_seconds_median": statistics.median(first for first, _ in answers),
        "token_seconds": min(tokens),
        "token_seconds_median": statistics.median(tokens),
        "recall": recall_seconds(speech_model, memory) if recalls(speech_model) else None,
        "peak_bytes": peak_bytes(),
    }


def recalls(speech_model: Any) -> bool:
    """Whether the checkpoint says words again from its memory before it answers."""
    return speech_model.config.sst is not None and bool(speech_model.config.sst.recall)


def recall_seconds(speech_model: Any, memory: AudioMemory) -> dict[str, float]:
    """Seconds to an answer's first token with recall before it: of the first question, and of one when its words are known."""

    def ask(memory: AudioMemory) -> float:
        started = time.perf_counter()
        recalled, question = recall(speech_model, memory, QUESTION, (0.0, memory.seconds))
        answer_once(speech_model.backend, recalled, speech_model.prompt.question_ids(question), 0)
        return time.perf_counter() - started

    fresh = dataclasses.replace(memory, recalled={})
    return {"first_question": ask(fresh), "second_question": min(ask(fresh) for _ in range(2))}


def table(records: list[Record]) -> str:
    """One row a length."""
    names = ("model", "backend", "ratio", "bits", "hours")
    return markdown_table(
        COLUMNS, sorted(records, key=lambda r: [(str(type(v)), v) for v in map(r.settings.get, names)])
    )


def _milliseconds(name: str) -> Any:
    return lambda r: r.result[name] * 1000


def _recall(name: str) -> Any:
    return lambda r: r.result["recall"] and r.result["recall"][name]


COLUMNS = {
    "model": lambda r: r.settings["model"],
    "backend": lambda r: r.settings["backend"],
    "ratio": lambda r: "raw" if r.settings["ratio"] is None else r.settings["ratio"],
    "memory bits": lambda r: r.settings["bits"],
    "hours heard": lambda r: f"{r.settings['hours']:.3g}",
    "slots": lambda r: r.result["slots"],
    "memory MiB": lambda r: r.result["memory_bytes"] / 2**20,
    "first token ms": _milliseconds("first_seconds"),
    "median": _milliseconds("first_seconds_median"),
    "a token ms": _milliseconds("token_seconds"),
    "tokens a second": lambda r: 1 / r.result["token_seconds"],
    "median of a token ms": _milliseconds("token_seconds_median"),
    "with recall: first question s": _recall("first_question"),
    "second question s": _recall("second_question"),
}
