"""Results into figures with confidence intervals, and figures into tables.

A figure is the sum of points by the sum of what they are of; its interval is a bootstrap over recordings, because
answers about one recording succeed and fail together. It knows results; no model, no audio and no plot.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
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
    costs: dict[str, Costs]  # kind -> costs
    figures: dict[str, dict[str, Figure]]  # kind -> metric -> figure


def make_rows(data: Data, methods: Sequence[Method], results: ResultsFile) -> list[Row]:
    """One row a method, from results of every item."""
    rows = []
    for method in methods:
        recordings = [results.of(method, [item.id for item in items]) for items in data.recordings().values()]
        parts = {ALL: recordings}
        kinds = dict.fromkeys(result.kind for recording in recordings for result in recording)
        if len(kinds) > 1:
            for kind in kinds:
                of_kind = [[r for r in recording if r.kind == kind] for recording in recordings]
                parts[kind] = [recording for recording in of_kind if recording]
        costs = {kind: _costs(part) for kind, part in parts.items()}
        rows.append(Row(method, costs, {kind: _figures(part) for kind, part in parts.items()}))
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
    low, high = confidence(lambda p, m, axis: p.sum(axis) / m.sum(axis), points, most)
    return Figure(float(points.sum() / most.sum()), low, high, sum(map(len, recordings)), len(recordings))


def confidence(statistic: Callable[..., np.ndarray], *sums: np.ndarray) -> tuple[float | None, float | None]:
    """Percentile bootstrap over recordings of statistic(*sums, axis); each of `sums` is (recordings,). None for one."""
    if len(sums[0]) < 2:
        return None, None
    interval = bootstrap(
        sums,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


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
        costs = row.costs[kind]
        cells += [f"{costs.bytes_per_minute / 1024:.0f}", f"{costs.speed:.1f}", f"{costs.answer_seconds:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row], data: Data, about: str, before: str = "", behind: str = "") -> str:
    """The whole report; `about` is a sentence that says what was judged, the others stand around the first table."""
    parts = [
        "# Evaluation\n",
        f"{about} {len(data.items)} items about {len(data.recordings())} recordings. {missing(data)}In brackets: "
        f"{CONFIDENCE:.0%} confidence, bootstrap over recordings ({RESAMPLES} resamples). What each column says: "
        "docs/evaluation.md.\n",
        *([f"{before}\n## All lines\n"] if before else []),
        table(rows),
        *([behind] if behind else []),
        "![accuracy against memory](accuracy.png)\n",
    ]
    for kind in dict.fromkeys(kind for row in rows for kind in row.figures if kind != ALL):
        parts += [f"## {kind}\n", table(rows, kind)]
    return "\n".join(parts)


def missing(data: Data) -> str:
    """A sentence about lines that were left out, with a blank behind it; "" where there are none."""
    return f"Lines left out because their recordings are missing: {data.missing}. " if data.missing else ""


def as_csv(rows: Sequence[Row]) -> str:
    """One figure a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "method",
            "ratio",
            "kind",
            "metric",
            "value",
            "low",
            "high",
            "items",
            "recordings",
            "bytes_per_minute",
            "times_real_time",
            "answer_seconds",
        ]
    )
    for row in rows:
        for kind, figures in row.figures.items():
            costs = row.costs[kind]
            taken = [f"{costs.bytes_per_minute:.1f}", f"{costs.speed:.3f}", f"{costs.answer_seconds:.3f}"]
            for metric, f in figures.items():
                numbers = ["" if n is None else f"{n:.6f}" for n in (f.value, f.low, f.high)]
                writer.writerow(
                    [row.method.name, row.method.ratio_label, kind, metric, *numbers, f.items, f.recordings, *taken]
                )
    return text.getvalue()
