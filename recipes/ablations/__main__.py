"""`python -m recipes.ablations --output FOLDER`: every claim of the method, trained with and without it.

One resumable command: a stage that is done, and an arm that is judged, is not done again; training goes on where it was
stopped. All arms have the same data, base, seeds and numbers of steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.ablations.arms import (
    ALIGNED,
    BASE_SEED,
    RATIOS,
    REFERENCE,
    SPEECH_ARMS,
    TEXT_ARMS,
    Arm,
    Steps,
    arm_recipe,
    base_recipe,
)
from recipes.ablations.checkpoint import write_speech_checkpoint, write_text_checkpoint
from recipes.ablations.data import make_speech, make_text
from recipes.ablations.judge import judge
from recipes.ablations.report import Judged, as_csv, as_markdown
from speech_xl.checkpoints import fingerprint
from speech_xl.errors import SpeechXLError
from speech_xl.whole_file import hold_folder, whole_file, whole_lines
from training.recipe import Recipe
from training.runner import Runner

GROUPS = (("Text", TEXT_ARMS, REFERENCE), ("Speech: the adapter", SPEECH_ARMS, ALIGNED))
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Sizes:
    """Recordings of the data."""

    text: int = 3000
    held: int = 60
    orders: tuple[int, int] = (2, 3)  # in a recording of text, least and most
    clips: int = 300  # spoken orders, and as many digits
    speech: int = 200
    held_speech: int = 40


class Stopped(Exception):
    """A run was asked to stop; its state is kept."""


class Study:
    """The arms of a study, trained and judged one after another; what is judged stays judged."""

    def __init__(self, output: Path, steps: Steps, sizes: Sizes):
        self._output, self._steps, self._sizes = output, steps, sizes
        self._results = output / RESULTS
        self._judged = {} if not self._results.exists() else dict(map(_from_line, whole_lines(self._results)))

    def run(self, seeds: Sequence[int], arms: Sequence[Arm]) -> list[Judged]:
        """Train and judge; a report is written behind every arm. Stopped if a stage was."""
        for arm in arms:  # a recipe that cannot be is said before anything is trained
            arm_recipe(arm, self._steps, seeds[0])
        found = []
        for seed in seeds:
            for arm in arms:
                model = self._trained(arm, seed)
                found.append(self._judge(arm, seed, model))
                self._report(found)
        return found

    def _trained(self, arm: Arm, seed: int) -> Path:
        text, held = make_text(self._output / "data", self._sizes.text, self._sizes.held, self._sizes.orders)
        start = self._output / "start"
        if not start.exists():
            write_text_checkpoint(start, BASE_SEED)
        base = self._train("base", base_recipe(self._steps), start, [text], held)
        recipe, name = arm_recipe(arm, self._steps, seed), f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}"
        if arm.alignment is None:
            return self._train(name, recipe, base, [text], held)
        clips, asked, held = self._speech()
        start = self._output / f"speech-{seed}-{fingerprint(base)[:12]}"
        if not start.exists():
            write_speech_checkpoint(start, base, seed)
        return self._train("speech", recipe, start, [clips, asked], held)

    def _speech(self) -> tuple[Path, Path, Path]:
        sizes = self._sizes
        return make_speech(self._output / "data", sizes.clips, sizes.speech, sizes.held_speech)

    def _train(self, name: str, recipe: Recipe, model: Path, data: list[Path], held: Path) -> Path:
        """The model of a recipe; `name` is its folder, in which what is heard is kept for every recipe."""
        folder = self._output / "runs" / name
        if not Runner(recipe, data, held, folder).run(model):
            raise Stopped
        return folder / "model"

    def _judge(self, arm: Arm, seed: int, model: Path) -> Judged:
        made, key = fingerprint(model), (arm.name, seed)
        if key in self._judged and self._judged[key][0] == made:
            return self._judged[key][1]
        if arm.alignment is None:
            _, held = make_text(self._output / "data", self._sizes.text, self._sizes.held, self._sizes.orders)
        else:
            held = self._speech()[2]
        judged = Judged(arm.name, seed, judge(model, held, RATIOS, self._output / "runs" / "speech" / "features"))
        counts = [[kind, ratio, *numbers] for (kind, ratio), numbers in judged.counts.items()]
        with open(self._results, "a", encoding="utf-8") as file:
            file.write(json.dumps({"arm": arm.name, "seed": seed, "model": made, "counts": counts}) + "\n")
        self._judged[key] = made, judged
        return judged

    def _report(self, judged: Sequence[Judged]) -> None:
        steps, sizes = self._steps, self._sizes
        about = (
            f"Steps: {steps.base} of reading text, then {steps.memory} of each arm's SSTs; {sizes.text:,} recordings, judged on "
            f"{sizes.held} others. The arms about the adapter: {steps.alignment} of alignment and {steps.answering} of answering, "
            f"or all of answering, then {steps.memory}; {sizes.speech} spoken recordings, judged on {sizes.held_speech} others."
        )
        for name, text in (("report.md", as_markdown(GROUPS, judged, about)), ("report.csv", as_csv(judged))):
            with whole_file(self._output / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def _from_line(line: bytes) -> tuple[tuple[str, int], tuple[str, Judged]]:
    try:
        row = json.loads(line)
        counts = {(kind, ratio): (right, most) for kind, ratio, right, most in row["counts"]}
        return (row["arm"], row["seed"]), (row["model"], Judged(row["arm"], row["seed"], counts))
    except (ValueError, KeyError, TypeError):
        raise SpeechXLError(
            f"A line of {RESULTS} is damaged: {line[:60]!r}; remove it, or name another folder."
        ) from None


def main(command: list[str] | None = None) -> int:
    """Run the study, or go on where it was stopped -> the exit code."""
    arms = {arm.name: arm for arm in (*TEXT_ARMS, *SPEECH_ARMS)}
    parser = argparse.ArgumentParser(prog="python -m recipes.ablations", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="data, models, results and report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    parser.add_argument(
        "--arms", nargs="+", default=list(arms), choices=list(arms), metavar="ARM", help=", ".join(arms)
    )
    for name, default in vars(Steps()).items():
        parser.add_argument(f"--{name}-steps", type=int, default=default, metavar="N", help=f"default: {default}")
    chosen = parser.parse_args(command)
    steps = Steps(**{name: getattr(chosen, f"{name}_steps") for name in vars(Steps())})
    try:
        lock = hold_folder(chosen.output, "study")
        try:
            Study(chosen.output, steps, Sizes()).run(chosen.seeds, [arms[name] for name in chosen.arms])
        finally:
            lock.release()
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt):
        print("Stopped; run the same command again to continue.", file=sys.stderr)
        return 130
    print((chosen.output / "report.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
