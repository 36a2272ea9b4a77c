"""What several subcommands share: options of the model and the span, and listening with a progress bar."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from speech_xl.arguments import parse_bytes, parse_ratio
from speech_xl.backend import BACKENDS
from speech_xl.clock import parse_time
from speech_xl.conversation import Listening
from speech_xl.errors import OutputError, QuestionError, ScheduleError
from speech_xl.memory import AudioMemory, load_memory
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.plain_text import one_line
from speech_xl.prompt import LONGEST_ANSWER
from speech_xl.schedule import Ratio, format_bytes
from speech_xl.slices import check_span
from speech_xl.storage import MEMORY_BITS
from speech_xl.summarizers import SUMMARIZERS

Span = tuple[float | None, float | None]  # start and end in seconds, None where none was given


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, on which backend."""
    parser.add_argument("--model", help="small, nano, a checkpoint folder or a Hub id (default: small, else nano)")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))


def add_memory(parser: argparse.ArgumentParser) -> None:
    """How a recording is kept."""
    parser.add_argument("--ratio", help="speech tokens per memory slot: raw, 2, 4, 8, 16")
    parser.add_argument("--summarizer", default="auto", choices=("auto", *SUMMARIZERS))
    parser.add_argument("--memory-budget", metavar="BYTES", help="take the smallest ratio that fits, e.g. 64MiB")
    parser.add_argument(
        "--memory-bits",
        type=int,
        default=16,
        choices=MEMORY_BITS,
        help="quantize the memory's keys and values to 8 or 4 bits (default 16: as the model computes)",
    )


def add_span(parser: argparse.ArgumentParser) -> None:
    """Of which part of the recording."""
    parser.add_argument("--from", dest="start", metavar="T", help="only this span: seconds, M:SS or H:MM:SS")
    parser.add_argument("--to", dest="end", metavar="T")


def add_longest(parser: argparse.ArgumentParser) -> None:
    """Where an answer is cut."""
    parser.add_argument(
        "--max-tokens", default=str(LONGEST_ANSWER), metavar="N", help=f"of one answer (default {LONGEST_ANSWER})"
    )


def parse_span(arguments: argparse.Namespace) -> Span:
    """--from and --to in seconds, None where not given; QuestionError for times that cannot be."""
    start, end = (None if text is None else parse_time(text) for text in (arguments.start, arguments.end))
    check_span(start, end, None)
    return start, end


def parse_memory(arguments: argparse.Namespace) -> tuple[Ratio | str, int | None]:
    """-> (ratio, or DEFAULT; budget in bytes, or None)."""
    ratio = DEFAULT if arguments.ratio is None else parse_ratio(arguments.ratio)
    budget = None if arguments.memory_budget is None else parse_bytes(arguments.memory_budget)
    return ratio, budget


def check_memory_path(path: Path) -> None:
    """OutputError where no memory can be written to `path`: said before the work."""
    if path.suffix.lower() != ".sxl":
        raise OutputError(f"{path} must end in .sxl, so that `ask` recognises it as a memory.")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent}; create it first.")


def load_model(arguments: argparse.Namespace) -> SpeechModel:
    """The model that the flags name; its note, if there is one, goes to stderr."""
    model = SpeechModel.load(arguments.model, arguments.backend, arguments.memory_bits)
    if model.note:
        print(model.note, file=sys.stderr)
    return model


def hear(
    model: SpeechModel, recording: Path, arguments: argparse.Namespace, span: Span = (None, None)
) -> tuple[AudioMemory, float]:
    """Listen with a progress bar on stderr -> the memory, seconds it took."""
    ratio, budget = parse_memory(arguments)
    listening = Listening(model, recording, ratio, budget, arguments.summarizer)
    if span != (None, None):  # outside the recording: said before an hour is heard
        try:
            check_span(*span, listening.total_seconds)
        except QuestionError:
            listening.cancel()
            raise
    if arguments.summarizer == "auto" and listening.summarizer.needs_training is False and listening.ratio is not None:
        print(f"Summarizer {listening.summarizer.name}: {listening.summarizer_reason}.", file=sys.stderr)
    bar_format = (
        "listening {n:.0f}/{total:.0f} s |{bar}|{postfix}"
        if listening.total_seconds
        else "listening {n:.0f} s{postfix}"
    )
    with tqdm(total=listening.total_seconds, bar_format=bar_format, file=sys.stderr, leave=True) as bar:
        for heard in listening:
            speed, size = f"{heard.speed:.0f}x real time", format_bytes(heard.memory_bytes)
            bar.set_postfix_str(f"{speed}, memory {size}", refresh=False)
            if bar.total is not None:  # a file may hold more than it declares
                bar.total = max(bar.total, heard.seconds)
            bar.update(heard.seconds - bar.n)
        took = bar.format_dict["elapsed"]
    return listening.memory, took


def get_memory(
    model: SpeechModel, recording: Path, arguments: argparse.Namespace, span: Span
) -> tuple[AudioMemory, float]:
    """Of a memory file or a recording -> the memory, seconds that listening took. Its warnings go to stderr."""
    if recording.suffix.lower() != ".sxl":
        memory, took = hear(model, recording, arguments, span)
    elif arguments.ratio is not None or arguments.memory_budget is not None:
        raise ScheduleError(
            "A memory already has a ratio; leave out --ratio and --memory-budget, or give the recording."
        )
    else:
        memory, took = load_memory(recording, model), 0.0
    for warning in memory.warnings:
        print(one_line(warning), file=sys.stderr)
    return memory, took
