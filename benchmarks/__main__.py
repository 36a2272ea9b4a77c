"""`python -m benchmarks COMMAND`: how fast this software is, how much memory it takes, and what else there is.

listening, together, answering, alternatives, limits and gpu each measure one subject into FOLDER, a JSON file a measurement, and
write FOLDER/report.md from all that is there. What is there already is not measured again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.models import OWN_HORIZON, Horizon
from benchmarks.records import Records
from speech_xl.arguments import parse_ratio
from speech_xl.backend import BACKENDS
from speech_xl.errors import ScheduleError, SpeechXLError
from speech_xl.schedule import Ratio
from speech_xl.storage import MEMORY_BITS

KINDS = {
    "listening": "seconds of audio a second, and peak memory, against length",
    "together": "several recordings heard as one batch against one after the other",
    "answering": "time to the first token, and tokens a second, against hours heard",
    "alternatives": "the same weights with a full key/value cache, and Whisper transcribing the same sound",
    "limits": "how near listening comes to the machine's matrix rate, and answering to its memory's",
    "gpu": "all of it on a GPU with random weights of the 7B shape, in less than ten minutes",
}


def ratio(text: str) -> Ratio:
    """Of the command line; argparse says what is wrong with it."""
    try:
        return parse_ratio(text)
    except ScheduleError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def horizon(text: str) -> Horizon:
    """Of the command line, likewise."""
    if text in (OWN_HORIZON, "all"):
        return text if text == OWN_HORIZON else None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no horizon; give own, all or a number of memory slots.")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """A subcommand for each of KINDS, with the options that they share."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="kind", metavar="COMMAND", required=True)
    for kind, about in KINDS.items():
        command = commands.add_parser(kind, help=about, description=about)
        command.add_argument("--output", type=Path, default=Path("runs/benchmarks"), metavar="FOLDER")
        command.add_argument(
            "--model", default="small", help="small, nano, a checkpoint folder, random-7b or random-tiny"
        )
        command.add_argument("--backend", nargs="+", default=["torch"], choices=tuple(BACKENDS))
        command.add_argument("--ratio", nargs="+", type=ratio, default=[8], help="raw or a whole number")
        command.add_argument("--horizon", type=horizon, default=OWN_HORIZON, help="own (default), all, or memory slots")
        command.add_argument("--memory-bits", type=int, choices=MEMORY_BITS, default=16)
        importlib.import_module(f"benchmarks.{kind}").add_arguments(command)
    return parser


def main(words: list[str] | None = None) -> int:
    """Measure, write the report and print it -> the exit code."""
    arguments = build_parser().parse_args(words)
    try:
        records = Records(arguments.output)
        importlib.import_module(f"benchmarks.{arguments.kind}").run(records, arguments)
        report = records.write_report(list(KINDS))
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    print(report, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
