"""`python -m evaluation`: measure how accurate a model's answers are, at every ratio and with every summarizer.

python -m evaluation DATA.jsonl --ratios raw 2 4 8 16 --output FOLDER
python -m evaluation DATA.jsonl --summarizers all --cascade --output FOLDER
python -m evaluation COPY --benchmark voicegiraffe --output FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evaluation import command
from evaluation.alternatives import where_cascade_wins
from evaluation.benchmarks import BENCHMARKS
from evaluation.benchmarks.table import score_all
from evaluation.data import Data, DataError, Line, check_lines, read_data
from evaluation.plot import plot
from evaluation.report import as_csv, make_rows, markdown, table
from evaluation.results import Method, ResultsFile


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="JSON lines, see docs/evaluation.md; with --benchmark, your copy of it")
    parser.add_argument("--benchmark", choices=tuple(BENCHMARKS), help="a public one, see docs/benchmarks_public.md")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="KIND", help="ask only lines of these kinds")
    parser.add_argument("--skip-missing", action="store_true", help="leave out lines whose recording cannot be heard")
    command.add_arguments(parser)
    return parser


def read(arguments: argparse.Namespace) -> tuple[Data, Sequence[Line]]:
    """-> (what to ask, a benchmark's lines)."""
    path, chosen = arguments.data, (arguments.kinds, arguments.skip_missing)
    if arguments.benchmark is None:
        if path.is_dir():
            raise DataError(f"{path} is a folder; name a file of JSON lines, or the benchmark that it is: --benchmark.")
        return read_data(path, *chosen), ()
    if not path.is_dir():
        raise DataError(f"{path} is no folder; name your copy of the benchmark.")
    lines = BENCHMARKS[arguments.benchmark].read(path)
    return check_lines(lines, path, path, *chosen), lines


def run(arguments: argparse.Namespace) -> None:
    """Ask, score, print the table and write the report; SpeechXLError in one sentence if that cannot be."""
    data, lines = read(arguments)
    model, methods = command.load(arguments)
    with command.answered(arguments, model, data, methods) as (results, about):
        report(arguments, data, lines, methods, results, about)


def report(
    arguments: argparse.Namespace,
    data: Data,
    lines: Sequence[Line],
    methods: Sequence[Method],
    results: ResultsFile,
    about: str,
) -> None:
    """Print the tables, and write the report where there is an output folder."""
    rows = make_rows(data, methods, results)
    print(table(rows), end="")
    own_table, more_csv, texts = "", "", {}
    if arguments.benchmark is not None:
        benchmark = BENCHMARKS[arguments.benchmark]
        scored = score_all(benchmark, lines, data, rows, results)
        own_table, more_csv = scored.markdown(benchmark), scored.csv(arguments.benchmark)
        texts["lines.jsonl"] = as_json_lines(lines, arguments.data)
        print("\n" + scored.table(), end="")
    wins = where_cascade_wins(rows, data, results)
    if wins:
        print("\n" + wins, end="")
    if arguments.output is not None:
        about = f"{about}, data {arguments.data.name}. {results.changed}".strip()
        texts |= {"report.md": markdown(rows, data, about, own_table, wins), "report.csv": as_csv(rows) + more_csv}
        command.write_files(arguments.output, texts, {"accuracy.png": partial(plot, rows)})


def as_json_lines(lines: Sequence[Line], folder: Path) -> str:
    """A benchmark's lines as a file of them: recordings by their whole path, so that the file may stand anywhere."""
    rows = [line.fields | {"audio": str((folder / line.fields["audio"]).resolve())} for line in lines]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(arguments: list[str] | None = None, prog: str = "python -m evaluation") -> int:
    """Run the command -> its exit code."""
    return command.finish(run, build_parser(prog).parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
