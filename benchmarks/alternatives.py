"""Against what a user would otherwise run with the same weights: a decoder that keeps all keys and values, and Whisper.

Both sides work in one process, by turns, so that a busy machine slows both. Against the full cache (full_cache.py) the
same tokens are heard, piece by piece, and at some lengths the same question is asked; encoding sound, which both need,
is left out. Against Whisper (whisper.py) the same sound is heard and transcribed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Generator
from typing import Any

from benchmarks.answering import QUESTION
from benchmarks.filling import hear_tokens, text_tokens, tokens_in
from benchmarks.full_cache import FullCache, full_cache
from benchmarks.listening import settings, synchronizer
from benchmarks.models import OWN_HORIZON, Horizon, load_model
from benchmarks.records import Record, Records, Result, markdown_table
from benchmarks.sound import RepeatedSound
from benchmarks.whisper import transcribers
from speech_xl.conversation import Listening
from speech_xl.example import EXAMPLE
from speech_xl.model import SpeechModel
from speech_xl.schedule import FixedRatio, Ratio, Scheduler

PIECE = 512  # tokens that the full cache reads at once: mlx-lm's size; longer ones took longer on CPUs
TOKENS, ROUNDS = 8, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command line, beside those that all commands have."""
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[10, 30, 60], metavar="M", help="full cache: lengths"
    )
    parser.add_argument("--whisper-minutes", type=float, default=5, metavar="M", help="of sound that is transcribed")
    parser.add_argument("--against", nargs="+", choices=("cache", "whisper"), default=["cache"])


def run(records: Records, arguments: argparse.Namespace) -> None:
    """Measure what the arguments name and is not there yet."""
    for backend in arguments.backend:
        for ratio in arguments.ratio:
            shared = settings(arguments, backend, ratio)
            if "cache" in arguments.against:
                records.get("alternatives", shared | {"against": "cache", "minutes": sorted(arguments.minutes)})
            if "whisper" in arguments.against:
                records.get("alternatives", shared | {"against": "whisper", "minutes": [arguments.whisper_minutes]})


def measure(
    model: str,
    backend: str,
    ratio: Ratio,
    against: str,
    minutes: list[float],
    horizon: Horizon = OWN_HORIZON,
    bits: int = 16,
) -> Result:
    """{"rows": [...]}, a row for each length (cache) or each transcriber (whisper); seconds of both sides."""
    speech_model = load_model(model, backend, horizon, bits)
    if against == "whisper":
        return {"rows": against_whisper(speech_model, ratio, minutes[0] * 60)}
    return {"rows": against_cache(speech_model, ratio, [m * 60 for m in minutes])}


def against_cache(model: SpeechModel, ratio: Ratio, lengths: list[float]) -> list[dict[str, Any]]:
    """Hear and ask by turns, on the way to the longest of `lengths` seconds."""
    wait = synchronizer(model.backend)
    theirs, prefix = full_cache(model.backend), model.prompt.prefix_ids
    state = model.backend.start(list(prefix))
    scheduler = Scheduler(model.interval, FixedRatio(ratio), len(prefix), horizon=model.horizon)
    if prefix:
        theirs.hear(list(prefix))
    piece = max(1, PIECE // model.interval) * model.interval
    seconds, heard, rows = {"ours": 0.0, "theirs": 0.0}, 0, []
    for length in lengths:
        total = tokens_in(model.config, length)
        while heard < total:
            ids = text_tokens(model, min(piece, total - heard), seed=heard)
            turns = {"ours": lambda: hear_tokens(model, state, scheduler, ids), "theirs": lambda: theirs.hear(ids)}  # noqa: B023
            for side in sorted(turns, reverse=bool(heard // piece % 2)):
                seconds[side] += timed(turns[side], wait)
            heard += len(ids)
        asked = ask_both(model, theirs, state, scheduler.base)
        rows.append(
            {
                "against": theirs.name,
                "seconds_of_sound": length,
                "tokens": heard,
                "ours_listen_seconds": seconds["ours"],
                "theirs_listen_seconds": seconds["theirs"],
                **asked,
                "ours_bytes": model.backend.memory_bytes(state),
                "theirs_bytes": theirs.bytes(),
            }
        )
    return rows


def timed(work: Callable[[], Any], wait: Callable[[], None]) -> float:
    """Seconds of `work`, the device waited for before and after."""
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def ask_both(model: SpeechModel, theirs: FullCache, state: Any, position: int) -> dict[str, float]:
    """Least seconds of ROUNDS to the first token and for one of those behind it, of both sides by turns."""
    ids = model.prompt.question_ids(QUESTION)
    sides: dict[str, Callable[[], Generator[Any]]] = {
        "ours": lambda: model.backend.answer(state, ids, position),
        "theirs": lambda: theirs.answer(ids),
    }
    best = {f"{side}_{what}_seconds": float("inf") for side in sides for what in ("first", "token")}
    for _ in range(ROUNDS):
        for side, start in sides.items():
            marks = [time.perf_counter()]
            steps = start()
            for _ in range(TOKENS + 1):
                next(steps)
                marks.append(time.perf_counter())
            steps.close()
            first, rest = marks[1] - marks[0], (marks[-1] - marks[1]) / TOKENS
            for what, value in (("first", first), ("token", rest)):
                best[f"{side}_{what}_seconds"] = min(best[f"{side}_{what}_seconds"], value)
    return best


def against_whisper(model: SpeechModel, ratio: Ratio, seconds: float) -> list[dict[str, Any]]:
    """Least of two turns each; ours hears the words and compresses them."""

    def ours() -> int:
        listening = Listening(model, RepeatedSound(EXAMPLE, seconds), ratio=ratio)
        for _ in listening:
            pass
        return listening.memory.tokens

    works = {"ours": ours} | {name: (lambda run=run: run(seconds)) for name, run in transcribers(model).items()}
    best, read = dict.fromkeys(works, float("inf")), {}
    for _ in range(2):
        for name, work in works.items():
            started = time.perf_counter()
            read[name] = work()
            best[name] = min(best[name], time.perf_counter() - started)
    return [
        {
            "against": name,
            "seconds_of_sound": seconds,
            "ours_listen_seconds": best["ours"],
            "theirs_listen_seconds": best[name],
            "ours_tokens": read["ours"],
            "theirs_tokens": read[name],
        }
        for name in works
        if name != "ours"
    ]


def table(records: list[Record]) -> str:
    """One row a length and alternative: their seconds over ours, so that more than 1 is ours to win."""
    flat = [Record(r.kind, r.settings, r.machine, r.date, row) for r in records for row in r.result["rows"]]
    return markdown_table(COLUMNS, flat)


def _times(what: str) -> Any:
    def ratio(r: Record) -> float | None:
        ours, theirs = (r.result.get(f"{side}_{what}") for side in ("ours", "theirs"))
        return theirs / ours if ours and theirs else None

    return ratio


def _each(name: str, scale: float = 1.0) -> Any:
    return lambda r: r.result[name] * scale if name in r.result else None


COLUMNS = {
    "model": lambda r: r.settings["model"],
    "backend": lambda r: r.settings["backend"],
    "ratio": lambda r: "raw" if r.settings["ratio"] is None else r.settings["ratio"],
    "horizon": lambda r: "all" if r.settings["horizon"] is None else r.settings["horizon"],
    "against": lambda r: r.result["against"],
    "minutes": lambda r: f"{r.result['seconds_of_sound'] / 60:.3g}",
    "listening s: ours": _each("ours_listen_seconds"),
    "theirs": _each("theirs_listen_seconds"),
    "listening: times faster": _times("listen_seconds"),
    "first token ms: ours": _each("ours_first_seconds", 1000),
    "theirs ": _each("theirs_first_seconds", 1000),
    "first token: times faster": _times("first_seconds"),
    "a token ms: ours": _each("ours_token_seconds", 1000),
    "theirs  ": _each("theirs_token_seconds", 1000),
    "a token: times faster": _times("token_seconds"),
    "memory: times smaller": _times("bytes"),
}
