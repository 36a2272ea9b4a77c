"""What the commands of the evaluation share: their arguments about models and methods, and how they run and end.

It knows argparse, the progress bar and exit codes; no data and no tables.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from evaluation.cascade import check_recognizer
from evaluation.data import Data
from evaluation.results import CASCADE, Method, ResultsFile, Run
from evaluation.run import EVERY, check_questions, choose_methods, evaluate
from speech_xl.arguments import parse_ratio
from speech_xl.backend import BACKENDS
from speech_xl.errors import SpeechXLError
from speech_xl.model import SpeechModel
from speech_xl.plain_text import one_line
from speech_xl.storage import MEMORY_BITS
from speech_xl.summarizers import SUMMARIZERS
from speech_xl.whole_file import hold_folder, whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the methods and the output folder."""
    parser.add_argument("--model", help="as for python -m speech_xl ask")
    parser.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
    parser.add_argument("--memory-bits", type=int, default=16, choices=MEMORY_BITS)
    parser.add_argument("--ratios", nargs="+", metavar="RATIO", help="raw, 2, 4, ... (default: all that the model has)")
    parser.add_argument("--summarizers", nargs="+", default=["auto"], choices=("auto", EVERY, *SUMMARIZERS))
    parser.add_argument(
        "--cascade",
        action="store_true",
        help="also evaluate transcribing first and reading the text (see docs/evaluation.md)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep results and write a report; resumable")


def load(arguments: argparse.Namespace) -> tuple[SpeechModel, list[Method]]:
    """The model and the methods that the flags name; SpeechXLError if a method cannot be had with this model."""
    ratios = None if arguments.ratios is None else [parse_ratio(ratio) for ratio in arguments.ratios]
    model = SpeechModel.load(arguments.model, arguments.backend, arguments.memory_bits)
    methods = choose_methods(model, ratios or [None, *model.ratios], arguments.summarizers)
    if arguments.cascade:
        check_recognizer(model)
        methods.append(CASCADE)
    return model, methods


@contextlib.contextmanager
def answered(
    arguments: argparse.Namespace, model: SpeechModel, data: Data, methods: Sequence[Method]
) -> Iterator[tuple[ResultsFile, str]]:
    """Ask everything that is not answered yet, behind a progress bar: (results, a sentence that says what was judged).

    The output folder is this process's own until the block ends.
    """
    check_questions(model, data)
    with contextlib.ExitStack() as behind:
        if arguments.output is not None:
            behind.callback(hold_folder(arguments.output, "evaluation").release)
        yield _answer_all(arguments, model, data, methods)


def _answer_all(
    arguments: argparse.Namespace, model: SpeechModel, data: Data, methods: Sequence[Method]
) -> tuple[ResultsFile, str]:
    run = Run(model.config.name, model.fingerprint, model.backend.name, arguments.memory_bits)
    results = ResultsFile(run, arguments.output, data)
    if results.changed:
        print(one_line(results.changed), file=sys.stderr)
    with tqdm(total=len(methods) * len(data.items), unit="item", file=sys.stderr) as bar:
        for method, item in evaluate(model, data, methods, results):
            bar.set_postfix_str(f"{method.label}, {one_line(item.audio.name)}", refresh=False)
            bar.update()
    about = (
        f"Model {run.model} ({run.fingerprint[:12]}), backend {run.backend} on {model.backend.device}, memory of "
        f"{run.memory_bits} bits"
    )
    return results, about


def write_files(folder: Path, texts: dict[str, str], plots: dict[str, Callable[[Path], None]]) -> None:
    """Files of a report by name, each whole or not at all."""
    for name, text in texts.items():
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name, draw in plots.items():
        with whole_file(folder / name) as temporary:
            draw(temporary)


def finish(run: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Run a command -> its exit code; what a person can mend is one sentence on stderr."""
    try:
        run(arguments)
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = (
            "what is answered is kept; run the same command again to continue"
            if arguments.output
            else "nothing was kept"
        )
        print(f"Stopped: {kept}.", file=sys.stderr)
        return 130
    return 0
