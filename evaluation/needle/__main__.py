"""`python -m evaluation.needle`: is one sentence found again, wherever in recordings of whatever length it is said?

python -m evaluation.needle NEEDLES.jsonl --speech FOLDER --lengths 1:00 5:00 30:00 --output FOLDER
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from evaluation import command
from evaluation.needle.grid import make_grid
from evaluation.needle.report import as_csv, markdown, plot
from evaluation.report import make_rows, table
from speech_xl.clock import parse_time

LENGTHS = ["1:00", "5:00", "30:00", "1:00:00", "5:00:00"]
DEPTHS = [0.0, 25.0, 50.0, 75.0, 100.0]


def build_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.needle", description=__doc__.splitlines()[0])
    parser.add_argument("needles", type=Path, help='JSON lines of short recordings: {"audio", "question", "answer"}')
    parser.add_argument("--speech", type=Path, required=True, metavar="FOLDER", help="recordings of other speech")
    parser.add_argument("--lengths", nargs="+", default=LENGTHS, help="seconds, M:SS or H:MM:SS (default: %(default)s)")
    parser.add_argument("--depths", nargs="+", type=float, default=DEPTHS, help="percent (default: %(default)s)")
    command.add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Ask the whole grid, print the table and write the report."""
    lengths = [parse_time(length) for length in arguments.lengths]
    grid = make_grid(arguments.needles, arguments.speech, lengths, arguments.depths)
    model, methods = command.load(arguments)
    with command.answered(arguments, model, grid.data, methods) as (results, about):
        rows = make_rows(grid.data, methods, results)
        print(table(rows), end="")
        if arguments.output is not None:
            about = f"{about}, needles of {arguments.needles.name} in the speech of {arguments.speech.name}. {results.changed}".strip()
            texts = {
                "report.md": markdown(grid, rows, results, about),
                "report.csv": as_csv(grid, methods, results),
            }
            command.write_files(arguments.output, texts, {"needle.png": partial(plot, grid, methods, results)})


def main(arguments: list[str] | None = None) -> int:
    """Run the command -> its exit code."""
    return command.finish(run, build_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
