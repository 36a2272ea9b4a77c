"""Results into figures with confidence intervals, and figures into tables.

A figure is the sum of points by the sum of what they are of; its interval is a bootstrap over recordings, because
answers about one recording succeed and fail together. It knows results; no model, no audio and no plot.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from evaluation.data import Data
from evaluation.results import Method, Result, ResultsFile

ALL = "all"  # the kind that stands for all kinds together
RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
METRICS = {  # in the order of the tables
    "exact": "exact match",
    "f1": "token F1",
    "choice": "right choices",
    "not_mentioned": '"not mentioned"',
    "wer": "word error rate",
    "evidence": "evidence overlaps",
}


@dataclass(frozen=True)
class Figure:
    """One metric of one method over the items of one kind. `low`, `high`: None for one recording alone."""

    value: float
    low: float | None
    high: float | None
    items: int
    recordings: int

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.low is None else f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


@dataclass(frozen=True)
class Costs:
    """What a method takes: bytes of memory by minutes of sound, times real time and seconds an item (medians)."""

    bytes_per_minute: float
    speed: float
    answer_seconds: float


@dataclass(frozen=True)
class Row:
    """Everything about one method."""

    method: Method
    costs: Costs
    figures: dict[str, dict[str, Figure]]  # kind -> metric -> figure


def make_rows(data: Data, methods: Sequence[Method], results: ResultsFile) -> list[Row]:
    """One row a method, from results of every item."""
    rows = []
    for method in methods:
        recordings = [results.of(method, [item.id for item in items]) for items in data.recordings().values()]
        kinds = dict.fromkeys(result.kind for recording in recordings for result in recording)
        figures = {ALL: _figures(recordings)}
        if len(kinds) > 1:
            figures |= {kind: _figures([[r for r in one if r.kind == kind] for one in recordings]) for kind in kinds}
        rows.append(Row(method, _costs(recordings), figures))
    return rows


def _figures(recordings: Sequence[Sequence[Result]]) -> dict[str, Figure]:
    figures = {}
    for metric in METRICS:
        pairs = [[r.scores[metric] for r in recording if metric in r.scores] for recording in recordings]
        pairs = [pair for pair in pairs if pair]
        if pairs:
            figures[metric] = ratio_figure(pairs)
    return figures


def ratio_figure(recordings: Sequence[Sequence[tuple[float, float]]]) -> Figure:
    """The figure of (points, of how many) pairs, one sequence a recording, none of them empty."""
    points, most = (np.array([sum(pair[i] for pair in one) for one in recordings]) for i in (0, 1))
    low = high = None
    if len(recordings) > 1:
        interval = bootstrap(
            (points, most), lambda p, m, axis: p.sum(axis) / m.sum(axis), paired=True, vectorized=True,
            n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(SEED),
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    return Figure(float(points.sum() / most.sum()), low, high, sum(map(len, recordings)), len(recordings))


def _costs(recordings: Sequence[Sequence[Result]]) -> Costs:
    heard = [recording[0] for recording in recordings]
    seconds = sum(r.seconds for r in heard)
    return Costs(
        bytes_per_minute=sum(r.bytes for r in heard) / max(seconds, 1e-9) * 60,
        # A median: the first recording also pays for what is loaded when it is first used.
        speed=statistics.median(r.seconds / max(r.listen_seconds, 1e-3) for r in heard),
        answer_seconds=statistics.median(r.answer_seconds for recording in recordings for r in recording),
    )


def table(rows: Sequence[Row], kind: str = ALL) -> str:
    """A Markdown table of one kind: a row a method, its costs beside its figures."""
    metrics = [m for m in METRICS if any(m in row.figures.get(kind, {}) for row in rows)]
    head = ["method", *(METRICS[m] for m in metrics), "KiB a minute", "times real time", "s an answer"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        figures = row.figures.get(kind, {})
        cells = [row.method.label, *(str(figures.get(m, "")) for m in metrics)]
        cells += [f"{row.costs.bytes_per_minute / 1024:.0f}", f"{row.costs.speed:.1f}", f"{row.costs.answer_seconds:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row], data: Data, about: str) -> str:
    """The whole report; `about` is a sentence that says what was judged."""
    parts = [
        "# Evaluation\n",
        f"{about} {len(data.items)} items about {len(data.recordings())} recordings. In brackets: {CONFIDENCE:.0%} "
        f"confidence, bootstrap over recordings ({RESAMPLES} resamples). What each column says: docs/evaluation.md.\n",
        table(rows),
        "![accuracy against memory](accuracy.png)\n",
    ]
    for kind in dict.fromkeys(kind for row in rows for kind in row.figures if kind != ALL):
        parts += [f"## {kind}\n", table(rows, kind)]
    return "\n".join(parts)


def as_csv(rows: Sequence[Row]) -> str:
    """One figure a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([
        "method", "ratio", "kind", "metric", "value", "low", "high", "items", "recordings", "bytes_per_minute",
        "times_real_time", "answer_seconds",
    ])  # fmt: skip
    for row in rows:
        costs = [f"{row.costs.bytes_per_minute:.1f}", f"{row.costs.speed:.3f}", f"{row.costs.answer_seconds:.3f}"]
        for kind, figures in row.figures.items():
            for metric, f in figures.items():
                numbers = ["" if n is None else f"{n:.6f}" for n in (f.value, f.low, f.high)]
                ratio = "raw" if row.method.ratio is None else row.method.ratio
                writer.writerow([row.method.name, ratio, kind, metric, *numbers, f.items, f.recordings, *costs])
    return text.getvalue()
