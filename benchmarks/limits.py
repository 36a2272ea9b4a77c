"""How near to the machine's limits the work comes.

Listening: the operations that it needs (operations.py) over the seconds that the device worked and over the rate of a
matrix product in the same process. Answering: the bytes that a token has to read over the seconds it took and over the
rate at which memory can be read.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.answering import QUESTION, TOKENS, answer_once
from benchmarks.filling import filled_memory
from benchmarks.listening import settings, synchronizer
from benchmarks.models import OWN_HORIZON, Horizon, load_model, weight_itemsize
from benchmarks.operations import (
    adapter_operations,
    interval_operations,
    reading_operations,
    text_operations,
    token_bytes,
    window_operations,
)
from benchmarks.rates import matrix_rate, read_rate
from benchmarks.records import Record, Records, Result, markdown_table
from benchmarks.sound import RepeatedSound
from benchmarks.stages import Stages
from speech_xl.backend import State
from speech_xl.conversation import Listening
from speech_xl.example import EXAMPLE
from speech_xl.model import SpeechModel
from speech_xl.schedule import IntervalPlan, Ratio

ROUNDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line, beside those that all commands have."""
    parser.add_argument("--minutes", type=float, default=2, metavar="M", help="of sound to hear")
    parser.add_argument("--hours", type=float, nargs="+", default=[1, 10], metavar="H", help="heard before an answer")


def run(records: Records, arguments: argparse.Namespace) -> None:
    """Measure what the arguments name and is not there yet."""
    for backend in arguments.backend:
        for ratio in arguments.ratio:
            lengths = {"minutes": arguments.minutes, "hours": sorted(arguments.hours)}
            records.get("limits", settings(arguments, backend, ratio) | lengths)


class Counter:
    """Adds up the operations of what a backend is asked for while it listens."""

    def __init__(self, model: SpeechModel):
        self.operations: dict[str, int] = defaultdict(int)
        self._config = model.config
        backend = model.backend
        self._after(backend, "hear", lambda parts, mel, *_: self._windows(len(mel)))
        self._after(backend, "recognize", self._read)
        self._after(backend, "close_intervals", self._hear)

    def _after(self, backend: Any, name: str, count: Callable[..., None]) -> None:
        method = getattr(backend, name)

        def counted(*arguments: Any) -> Any:
            result = method(*arguments)
            count(*arguments, *([result] if name == "recognize" else []))
            return result

        setattr(backend, name, counted)

    def _add(self, stage: str, operations: int) -> None:
        self.operations[stage] += operations

    def _hear(self, parts: Sequence[tuple[State, Sequence[IntervalPlan]]]) -> None:
        self._add("decoder", sum(interval_operations(self._config, plan) for _, plans in parts for plan in plans))

    def _windows(self, count: int) -> None:
        self._add("encoder", count * window_operations(self._config))
        if self._config.adapter is not None:
            self._add("adapter", count * adapter_operations(self._config))

    def _read(self, mel: Any, *rest: Any) -> None:
        *before, readings = rest
        self._windows(len(mel))
        assert self._config.recognizer is not None
        start = len(self._config.recognizer.start_ids) + (len(before[0][0]) if before and before[0] else 0)
        for reading in readings:
            # The end is a chosen token too; a reading that came to none is as long as there is room.
            self._add("recognizer", reading_operations(self._config, start, max(1, len(reading.attention))))


def measure(
    model: str,
    backend: str,
    ratio: Ratio,
    minutes: float,
    hours: list[float],
    horizon: Horizon = OWN_HORIZON,
    bits: int = 16,
) -> Result:
    """Rates, then listening and answering by turns with them; shares are of the best rate."""
    speech_model = load_model(model, backend, horizon, bits)
    made = speech_model.backend
    rates, reads = [matrix_rate(made)], [read_rate(made)]
    hear(speech_model, ratio, min(minutes, 0.5))  # warms up
    stages = Stages(synchronizer(made))
    stages.watch_backend(made)
    counter = Counter(speech_model)  # outside, so that counting is not timed
    tokens = hear(speech_model, ratio, minutes)
    rates.append(matrix_rate(made))
    seconds = stages.report(speech_model.config.recognizer is not None)
    answers = [answer(speech_model, ratio, length) for length in hours]
    reads.append(read_rate(made))
    operations = dict(counter.operations)
    worked = {name: seconds[name] for name in operations}
    return {
        "device": made.device,
        "matrix_rate": max(rates),
        "read_rate": max(reads),
        "heard_seconds": minutes * 60,
        "tokens": tokens,
        "operations": operations,
        "stage_seconds": worked,
        "shares": {name: count / worked[name] / max(rates) for name, count in operations.items() if worked[name]},
        "share": sum(operations.values()) / sum(worked.values()) / max(rates),
        "answers": [a | {"times_limit": a["token_seconds"] * max(reads) / a["token_bytes"]} for a in answers],
    }


def hear(model: SpeechModel, ratio: Ratio, minutes: float) -> int:
    """-> speech tokens."""
    listening = Listening(model, RepeatedSound(EXAMPLE, minutes * 60), ratio=ratio)
    for _ in listening:
        pass
    return listening.memory.tokens


def answer(model: SpeechModel, ratio: Ratio, hours: float) -> dict[str, float]:
    """The least seconds of the question and of a token, and what each has to compute and to read."""
    memory = filled_memory(model, hours * 3600, ratio)
    ids = model.prompt.question_ids(QUESTION)
    rounds = [answer_once(model.backend, memory, ids, TOKENS) for _ in range(ROUNDS)]
    return {
        "hours": hours,
        "slots": memory.slots,
        "first_seconds": min(first for first, _ in rounds),
        "first_operations": text_operations(model.config, len(ids), memory.slots),
        "token_seconds": min(second for _, rest in rounds for second in rest),
        "token_bytes": token_bytes(model.config, weight_itemsize(model.backend), memory.bytes),
    }


def table(records: list[Record]) -> str:
    """Listening, one row a measurement; answering, one row a length."""
    flat = [
        Record(r.kind, r.settings, r.machine, r.date, r.result | {"answer": answer})
        for r in records
        for answer in r.result["answers"]
    ]
    return markdown_table(LISTENING, records) + "\n" + markdown_table(ANSWERING, flat)


def _share(*names: str) -> Any:
    return lambda r: next((r.result["shares"][name] for name in names if name in r.result["shares"]), None)


WHICH = {
    "model": lambda r: r.settings["model"],
    "backend": lambda r: r.settings["backend"],
    "ratio": lambda r: "raw" if r.settings["ratio"] is None else r.settings["ratio"],
    "horizon": lambda r: "all" if r.settings["horizon"] is None else r.settings["horizon"],
}
LISTENING = WHICH | {
    "matrix product, GFLOP/s": lambda r: r.result["matrix_rate"] / 1e9,
    "GFLOP an hour of sound": lambda r: sum(r.result["operations"].values()) / r.result["heard_seconds"] * 3600 / 1e9,
    "share reached: encoder": _share("encoder"),
    "adapter, recogniser": _share("adapter", "recognizer"),
    "decoder": _share("decoder"),
    "all": lambda r: r.result["share"],
}
ANSWERING = WHICH | {
    "reading, GB/s": lambda r: r.result["read_rate"] / 1e9,
    "hours heard": lambda r: f"{r.result['answer']['hours']:.3g}",
    "first token ms": lambda r: r.result["answer"]["first_seconds"] * 1000,
    "at the matrix rate ms": lambda r: r.result["answer"]["first_operations"] / r.result["matrix_rate"] * 1000,
    "a token ms": lambda r: r.result["answer"]["token_seconds"] * 1000,
    "MB to read": lambda r: r.result["answer"]["token_bytes"] / 1e6,
    "times the limit": lambda r: r.result["answer"]["times_limit"],
}
