"""What the arms' right answers say, seed by seed: tables for people, and one figure a line for programs.

It knows counts; no model and no training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from recipes.ablations.arms import RATIOS, Arm
from recipes.ablations.data import SAID
from recipes.ablations.judge import Counts
from training.batch import name_of


@dataclass(frozen=True)
class Judged:
    """An arm, trained with one seed."""

    arm: str
    seed: int
    counts: Counts

    def share(self, ratio: str, kind: str = SAID) -> float:
        """Right answers by all of a kind; not a number where there is none."""
        right, most = self.counts.get((kind, ratio), (0, 0))
        return right / most if most else math.nan


def table(arms: Sequence[Arm], reference: Arm, judged: Sequence[Judged]) -> str:
    """Markdown: the share of right answers about what was said, mean and (least to most) over the seeds, and how far an
    arm is from the reference with the same seed.
    """
    names = [name_of(ratio) for ratio in RATIOS]
    lines = ["| arm | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    reference_of = {one.seed: one for one in judged if one.arm == reference.name}
    for arm in arms:
        ours = sorted((one for one in judged if one.arm == arm.name), key=lambda one: one.seed)
        if not ours:
            continue
        cells = []
        for name in names:
            shares = [one.share(name) for one in ours]
            cell = spread(shares)
            pairs = [(one, reference_of[one.seed]) for one in ours if one.seed in reference_of]
            if arm != reference and pairs:
                cell += "; " + spread([one.share(name) - other.share(name) for one, other in pairs], signed=True)
            cells.append(cell)
        lines.append(f"| {arm.name} ({len(ours)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], signed: bool = False) -> str:
    """ "0.81 (0.78 to 0.84)", of one value without the brackets."""
    form = "+.2f" if signed else ".2f"
    mean = format(sum(values) / len(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def as_markdown(groups: Sequence[tuple[str, Sequence[Arm], Arm]], judged: Sequence[Judged], about: str) -> str:
    """`groups`: (heading, arms, the one that the others are compared with)."""
    parts = [
        "# Ablations\n",
        f"{about}\n",
        "Share of right answers to questions about what was said, at each ratio: the mean over the seeds (least to most); "
        "behind the semicolon, the difference from the first arm with the same seed. In brackets behind the name, how many "
        "seeds.\n",
    ]
    for heading, arms, reference in groups:
        if any(one.arm in {arm.name for arm in arms} for one in judged):
            claims = "\n".join(f"- {arm.name}: {arm.claim}" for arm in arms)
            parts.append(f"## {heading}\n\n{table(arms, reference, judged)}\n{claims}\n")
    return "\n".join(parts)


def as_csv(judged: Sequence[Judged]) -> str:
    """Right answers and questions, a line for each arm, seed, kind and ratio."""
    rows = [
        f"{one.arm},{one.seed},{kind},{ratio},{right},{most}"
        for one in judged
        for (kind, ratio), (right, most) in sorted(one.counts.items())
    ]
    return "\n".join(["arm,seed,kind,ratio,right,of", *rows]) + "\n"
