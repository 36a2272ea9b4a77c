"""`python -m torch_backend.training RECIPE.json`: run the stages of a recipe, each where it left off."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speech_xl.errors import SpeechXLError
from torch_backend.training.recipe import load_recipe
from torch_backend.training.runner import Runner

DEFAULT_RECIPE = Path(__file__).parent / "configs" / "nano.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torch_backend.training", description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=DEFAULT_RECIPE, help="default: the nano model's")
    parser.add_argument("--runs", type=Path, default=Path("runs/nano"), help="states and metrics are kept here")
    parser.add_argument("--cache", type=Path, default=Path("cache/tts"), help="text-to-speech is kept here")
    parser.add_argument("--human-data", type=Path, help="folder with orders/ and digits/ spoken by people")
    parser.add_argument("--stage", action="append", help="run only this stage (repeatable); default: all in order")
    parser.add_argument("--export", type=Path, help="write the finished model to this checkpoint folder")
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe)
        runner = Runner(recipe, arguments.runs, arguments.cache, arguments.human_data)
        for name in arguments.stage or [s.name for s in recipe.stages]:
            runner.run(recipe.stage(name))
        if arguments.export:
            runner.export(arguments.export)
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from the last saved state.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
