"""`python -m evaluation`: how right a model's answers are, at every ratio and with every summarizer.

python -m evaluation DATA.jsonl --ratios raw 2 4 8 16 --output FOLDER
python -m evaluation DATA.jsonl --ratios 8 --summarizers sst attention pool stride window
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from evaluation.cascade import check_recognizer
from evaluation.data import read_data
from evaluation.plot import plot
from evaluation.report import Row, as_csv, make_rows, markdown, table
from evaluation.results import CASCADE, ResultsFile, Run
from evaluation.run import choose_methods, evaluate
from speech_xl.arguments import parse_ratio
from speech_xl.backend import BACKENDS
from speech_xl.errors import OutputError, SpeechXLError
from speech_xl.model import SpeechModel
from speech_xl.storage import MEMORY_BITS
from speech_xl.summarizers import SUMMARIZERS


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="How right a model's answers are, at every ratio.")
    parser.add_argument("data", type=Path, help="JSON lines, see docs/evaluation.md")
    parser.add_argument("--model", help="as for python -m speech_xl ask")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
    parser.add_argument("--memory-bits", type=int, default=16, choices=MEMORY_BITS)
    parser.add_argument("--ratios", nargs="+", metavar="RATIO", help="raw, 2, 4, ... (default: all that the model has)")
    parser.add_argument("--summarizers", nargs="+", default=["auto"], choices=("auto", *SUMMARIZERS))
    parser.add_argument("--cascade", action="store_true", help="also transcribe first and read the text: see the document")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep results and write a report; resumable")
    return parser


def run(arguments: argparse.Namespace) -> None:
    data = read_data(arguments.data)
    ratios = None if arguments.ratios is None else [parse_ratio(ratio) for ratio in arguments.ratios]
    model = SpeechModel.load(arguments.model, arguments.backend, arguments.memory_bits)
    methods = choose_methods(model, ratios or [None, *model.ratios], arguments.summarizers)
    if arguments.cascade:
        check_recognizer(model)
        methods.append(CASCADE)
    settings = Run(model.config.name, model.fingerprint, data.sha256, model.backend.name, arguments.memory_bits)
    results = ResultsFile(settings, arguments.output)
    with tqdm(total=len(methods) * len(data.items), unit="item", file=sys.stderr) as bar:
        for method, item in evaluate(model, data, methods, results):
            bar.set_postfix_str(f"{method.label}, {item.audio.name}", refresh=False)
            bar.update()
    rows = make_rows(data, methods, results)
    print(table(rows), end="")
    if arguments.output is not None:
        about = (
            f"Model {settings.model} ({settings.fingerprint[:12]}), backend {settings.backend} on "
            f"{model.backend.device}, memory of {settings.memory_bits} bits, data {arguments.data.name}."
        )
        write_report(arguments.output, rows, markdown(rows, data, about))


def write_report(folder: Path, rows: Sequence[Row], text: str) -> None:
    """report.md, report.csv and accuracy.png, each whole or not at all."""
    for name, write in (
        ("report.md", lambda path: path.write_text(text, encoding="utf-8")),
        ("report.csv", lambda path: path.write_text(as_csv(rows), encoding="utf-8")),
        ("accuracy.png", lambda path: plot(rows, path)),
    ):
        temporary = folder / f".{name}.part"
        try:
            write(temporary)
            os.replace(temporary, folder / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"{folder / name} cannot be written ({error.strerror}); make room and run the same command again."
            ) from None


def main(arguments: list[str] | None = None, prog: str = "python -m evaluation") -> int:
    parsed = build_parser(prog).parse_args(arguments)
    try:
        run(parsed)
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "what is answered is kept; the same command goes on" if parsed.output else "nothing was kept"
        print(f"Stopped: {kept}.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
