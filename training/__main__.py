"""`python -m training`: train a checkpoint on JSON lines, each stage from where it left off."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speech_xl.errors import SpeechXLError


def main(command: list[str] | None = None, prog: str = "python -m training") -> int:
    """Run the command -> its exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Train a checkpoint on JSON lines, each stage from where it left off.")
    parser.add_argument("--model", required=True, help="checkpoint folder, Hub id, or the name of a shipped model")
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="JSONL", help="recordings to train on")
    parser.add_argument("--validation", type=Path, metavar="JSONL", help="recordings that are never trained on")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="the trained model is FOLDER/model"
    )
    parser.add_argument("--recipe", type=Path, metavar="JSON", help="stages and settings (see docs/training.md)")
    arguments = parser.parse_args(command)
    from speech_xl.checkpoints import resolve_checkpoint
    from training.recipe import load_recipe
    from training.runner import Runner

    try:
        recipe = load_recipe(arguments.recipe)
        runner = Runner(recipe, arguments.data, arguments.validation, arguments.output)
        if runner.run(resolve_checkpoint(arguments.model)):
            return 0
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be entered
        print(f"{error.filename or 'A file'}: {error.strerror or error}; name another output folder.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step, or twice
        pass
    print("Stopped; the same command goes on from here.", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
