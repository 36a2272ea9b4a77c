"""Figures of answers, summed by what was asked and at which ratio. Plain numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

Group = tuple[str, str]  # kind of question, ratio
Sums = dict[Group, np.ndarray]  # sum of losses, right tokens, tokens


def add(sums: Sums, more: Sums) -> None:
    """Add `more` to `sums`."""
    for group, figures in more.items():
        sums[group] = sums[group] + figures if group in sums else figures


def added(many: Iterable[Sums]) -> Sums:
    """The sum of all, groups in alphabetical order."""
    total: Sums = {}
    for sums in many:
        add(total, sums)
    return dict(sorted(total.items()))
