"""Answers into cells, and cells into a report, a file of figures and a heat map for each method.

It knows results; no model and no audio.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Canvas

from evaluation.needle.grid import Grid
from evaluation.report import RESAMPLES, Row, table
from evaluation.results import Method, Result, ResultsFile
from speech_xl.clock import clock

RIGHT = ("exact", "choice", "not_mentioned")  # the one of these that an answer has says whether it is right
SHARES = {"right": RIGHT, "f1": ("f1",), "evidence": ("evidence",)}
COLUMNS = 4  # heat maps side by side


def cell(results: Sequence[Result], metrics: Sequence[str]) -> float:
    """Points by what they are of, over the metrics that the answers have; nan where they have none."""
    pairs = [result.scores[metric] for result in results for metric in metrics if metric in result.scores]
    return sum(points for points, _ in pairs) / sum(most for _, most in pairs) if pairs else float("nan")


def right_answers(grid: Grid, method: Method, results: ResultsFile) -> np.ndarray:
    """(depths, lengths) float64: the share of right answers."""
    return np.array(
        [
            [cell(results.of(method, grid.cells[length, depth]), RIGHT) for length in grid.lengths]
            for depth in grid.depths
        ]
    )


def markdown(grid: Grid, rows: Sequence[Row], results: ResultsFile, about: str) -> str:
    """The report's text: a table of right answers by depth and length for every method."""
    needles = len(next(iter(grid.cells.values())))
    parts = [
        "# Needle grid\n",
        f"{about} Each cell: the share of right answers to {needles} questions about needles at that depth, from 0 % (at the start) to "
        f"100 % (at the end), of a recording of that length. {repeated(grid)}\n",
        "![right answers by depth and length](needle.png)\n",
    ]
    for row in rows:
        shares = right_answers(grid, row.method, results)
        lines = [["depth", *map(clock, grid.lengths)], ["---"] * (len(grid.lengths) + 1)]
        lines += [[f"{d:g} %", *(f"{x:.2f}" for x in line)] for d, line in zip(grid.depths, shares, strict=True)]
        parts += [f"## {row.method.label}\n", "".join(f"| {' | '.join(cells)} |\n" for cells in lines)]
    parts += [
        "## All depths together\n",
        f"In brackets: 95 % confidence, bootstrap over recordings ({RESAMPLES} resamples). What each column says: "
        "docs/evaluation.md.\n",
    ]
    for length in grid.lengths:
        kind = clock(length) if len(grid.lengths) > 1 else "all"
        parts += [f"### {clock(length)}\n", table(rows, kind)]
    return "\n".join(parts)


def repeated(grid: Grid) -> str:
    """A sentence about how much different speech there is."""
    if grid.speech_seconds >= grid.lengths[-1]:
        return "No speech is heard twice in a recording."
    return f"There are {clock(grid.speech_seconds)} of speech; longer recordings hear it again from its start."


def as_csv(grid: Grid, methods: Sequence[Method], results: ResultsFile) -> str:
    """One cell of one method a line; empty where a share has nothing to count."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "ratio", "length_seconds", "depth_percent", *SHARES, "needles"])
    for method in methods:
        for (length, depth), ids in grid.cells.items():
            answers = results.of(method, ids)
            shares = [cell(answers, metrics) for metrics in SHARES.values()]
            numbers = ["" if np.isnan(share) else f"{share:.6f}" for share in shares]
            writer.writerow([method.name, method.ratio_label, f"{length:g}", f"{depth:g}", *numbers, len(answers)])
    return text.getvalue()


def plot(grid: Grid, methods: Sequence[Method], results: ResultsFile, path: Path) -> None:
    """A heat map for each method: depth downwards, length to the right, bright where all answers are right. PNG."""
    columns = min(COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    size = (1.6 + 0.7 * len(grid.lengths), 1.4 + 0.36 * len(grid.depths))
    canvas = Canvas(figsize=(max(3.2, size[0]) * columns + 0.8, max(2.6, size[1]) * lines), layout="constrained")
    axes = canvas.subplots(lines, columns, squeeze=False).flat
    for each, method in zip(axes, methods, strict=False):
        shares = right_answers(grid, method, results)
        image = each.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        each.set_xticks(range(len(grid.lengths)), map(clock, grid.lengths))
        each.set_yticks(range(len(grid.depths)), [f"{depth:g}" for depth in grid.depths])
        each.set(title=method.label, xlabel="length of the recording", ylabel="depth of the needle, %")
        for (row, column), share in np.ndenumerate(shares):
            ink = "white" if share < 0.6 else "black"
            each.text(column, row, f"{share:.2f}", color=ink, ha="center", va="center", fontsize=8)
    for each in list(canvas.axes)[len(methods) :]:
        each.set_axis_off()
    canvas.colorbar(image, ax=canvas.axes, label="right answers")
    canvas.savefig(path, format="png", dpi=120)
