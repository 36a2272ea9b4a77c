"""`python -m training`: train a checkpoint on JSON lines, each stage from where it left off."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speech_xl.errors import SpeechXLError
from speech_xl.plain_text import one_line


def main(command: list[str] | None = None, prog: str = "python -m training") -> int:
    """Run the command -> its exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Train a checkpoint on JSON lines, each stage from where it left off."
    )
    parser.add_argument("--model", required=True, help="checkpoint folder, Hub id, or the name of a shipped model")
    parser.add_argument("--data", nargs="+", type=Path, metavar="JSONL", help="recordings to train on")
    parser.add_argument("--validation", type=Path, metavar="JSONL", help="recordings that are never trained on")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="the trained model is FOLDER/model")
    parser.add_argument("--recipe", type=Path, metavar="JSON", help="stages and settings (see docs/training.md)")
    parser.add_argument("--plan", action="store_true", help="train nothing; print how much GPU memory each stage needs")
    parser.add_argument("--gpus", nargs="+", type=int, metavar="N", help="numbers of GPUs, with --plan (1 4 8)")
    parser.add_argument("--gpu-memory", metavar="BYTES", help="memory of each GPU, with --plan (80GB)")
    arguments = parser.parse_args(command)
    if arguments.plan:
        return print_plan(arguments)
    if arguments.data is None or arguments.output is None:
        parser.error("--data and --output are required without --plan")
    if arguments.gpus or arguments.gpu_memory:
        parser.error("--gpus and --gpu-memory belong to --plan")
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
        said = f"{error.filename or 'A file'}: {error.strerror or error}; name another output folder."
        print(one_line(said), file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step, or twice
        pass
    print("Stopped; run the same command again to continue.", file=sys.stderr)
    return 130


def print_plan(arguments: argparse.Namespace) -> int:
    """--plan: a table on standard output. --model may be a folder that holds no more than a config.json."""
    from speech_xl.arguments import parse_bytes
    from speech_xl.checkpoints import find_folder, resolve_checkpoint
    from speech_xl.config_file import load_config
    from training.plan import plan, plan_lines
    from training.recipe import RecipeError, load_recipe

    gpus = arguments.gpus or [1, 4, 8]
    try:
        if min(gpus) < 1:
            raise RecipeError(f"--gpus must be whole numbers from 1, not {min(gpus)}.")
        gpu_memory = parse_bytes(arguments.gpu_memory or "80GB")
        recipe = load_recipe(arguments.recipe)
        config = load_config(find_folder(arguments.model) or resolve_checkpoint(arguments.model))
        lines = plan_lines(plan(recipe, config, gpus, recipe.precision != "float32"), gpu_memory)
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
