"""accuracy.png: what a minute of recording costs in memory, and how right the answers are for it.

One panel a metric, one curve a summarizer; raw ends every curve. It knows rows of figures only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from evaluation.report import ALL, METRICS, Row
from evaluation.results import CASCADE, RAW

SHOWN = ("exact", "choice", "not_mentioned", "wer")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the figures of all kinds together, with their confidence intervals, and write them as PNG."""
    metrics = [m for m in SHOWN if any(m in row.figures[ALL] for row in rows)]
    canvas = Canvas(figsize=(5.5 * len(metrics), 4.2), layout="constrained")
    for axes, metric in zip(canvas.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for name in dict.fromkeys(row.method.name for row in rows):
            curve = [row for row in rows if row.method.name == name or (name != CASCADE.name and row.method == RAW)]
            curve = sorted((r for r in curve if metric in r.figures[ALL]), key=lambda r: r.costs[ALL].bytes_per_minute)
            figures = [row.figures[ALL][metric] for row in curve]
            below = [0 if f.low is None else max(0, f.value - f.low) for f in figures]
            above = [0 if f.high is None else max(0, f.high - f.value) for f in figures]
            axes.errorbar(
                [row.costs[ALL].bytes_per_minute / 1024 for row in curve],
                [f.value for f in figures],
                [below, above],
                marker="o",
                capsize=3,
                label=name,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(xlabel="KiB of memory a minute of recording", ylabel=METRICS[metric])
        axes.set_ylim(0, None if metric == "wer" else 1.02)
        axes.grid(alpha=0.3)
        axes.legend()
    canvas.savefig(path, format="png", dpi=120)
