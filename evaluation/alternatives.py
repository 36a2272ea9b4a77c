"""Where the cascade wins: transcribing first and reading the text, against the memories of the same run.

A difference is judged on the same recordings by a paired bootstrap: it is clear where its confidence interval does not
reach zero. It knows rows of figures and results; no model and no audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.data import Data
from evaluation.report import ALL, METRICS, Figure, Row, confidence
from evaluation.results import CASCADE, Method, ResultsFile

BETTER = {"exact": 1, "choice": 1, "not_mentioned": 1, "wer": -1}  # the sign of what is better


@dataclass(frozen=True)
class Comparison:
    """The cascade beside the best memory in one metric of one kind. `gain` above zero: the cascade is better."""

    kind: str
    metric: str
    cascade: Figure
    memory: Figure
    method: Method
    gain: float
    is_clear: bool
    bytes_ratio: float  # of the memory by those of the cascade

    def __str__(self) -> str:
        of = "all lines" if self.kind == ALL else self.kind
        return (
            f"{METRICS[self.metric]} of {of} ({self.cascade.value:.3f} against {self.memory.value:.3f} of "
            f"{self.method.label}, which takes {self.bytes_ratio:.2g} times its bytes)"
        )


def where_cascade_wins(rows: Sequence[Row], data: Data, results: ResultsFile) -> str:
    """A paragraph, "" where the cascade or a memory to compare it with is not among the rows."""
    cascade = next((row for row in rows if row.method == CASCADE), None)
    memories = [row for row in rows if row.method != CASCADE]
    if cascade is None or not memories:
        return ""
    limit = cascade.costs[ALL].bytes_per_minute
    small = [row for row in memories if row.costs[ALL].bytes_per_minute <= limit]
    parts = ["Against the best memory of this run, " + _verdict(compare(cascade, memories, data, results))]
    if not small:
        parts.append("No memory of this run takes as few bytes as the cascade.")
    elif len(small) < len(memories):
        parts.append(
            "Against the best memory that takes no more bytes than it, "
            + _verdict(compare(cascade, small, data, results))
        )
    return " ".join(parts) + "\n"


def compare(cascade: Row, memories: Sequence[Row], data: Data, results: ResultsFile) -> list[Comparison]:
    """The cascade beside the best of `memories`, for each kind and metric that it has."""
    return [
        _compare(cascade, memories, kind, metric, data, results)
        for kind, figures in cascade.figures.items()
        for metric in BETTER
        if metric in figures
    ]


def _compare(
    cascade: Row, memories: Sequence[Row], kind: str, metric: str, data: Data, results: ResultsFile
) -> Comparison:
    sign = BETTER[metric]
    best = max(memories, key=lambda row: sign * row.figures[kind][metric].value)
    ours, theirs = (row.figures[kind][metric] for row in (cascade, best))
    sums = [*_sums(CASCADE, kind, metric, data, results), *_sums(best.method, kind, metric, data, results)]
    low, high = confidence(
        lambda a, b, c, d, axis: sign * (a.sum(axis) / b.sum(axis) - c.sum(axis) / d.sum(axis)), *sums
    )
    is_clear = low is not None and high is not None and (low > 0 or high < 0)
    size = best.costs[kind].bytes_per_minute / max(cascade.costs[kind].bytes_per_minute, 1e-9)
    return Comparison(kind, metric, ours, theirs, best.method, sign * (ours.value - theirs.value), is_clear, size)


def _sums(method: Method, kind: str, metric: str, data: Data, results: ResultsFile) -> tuple[np.ndarray, np.ndarray]:
    """-> (points, of how many), one sum a recording."""
    pairs = []
    for items in data.recordings().values():
        chosen = [r for r in results.of(method, [item.id for item in items]) if kind in (ALL, r.kind)]
        scores = [r.scores[metric] for r in chosen if metric in r.scores]
        if scores:
            pairs.append(np.sum(scores, axis=0))
    points, most = np.array(pairs).T
    return points, most


def _verdict(comparisons: Sequence[Comparison]) -> str:
    """What follows "Against ...,": where the cascade wins first, then everything else."""
    wins, ahead, equal, behind, loses = (
        "; ".join(str(c) for c in comparisons if holds(c))
        for holds in (
            lambda c: c.gain > 0 and c.is_clear,
            lambda c: c.gain > 0 and not c.is_clear,
            lambda c: c.gain == 0,
            lambda c: c.gain < 0 and not c.is_clear,
            lambda c: c.gain < 0 and c.is_clear,
        )
    )
    sentences = [f"the cascade wins in {wins}." if wins else "the cascade wins nowhere clearly."]
    sentences += [f"It is ahead, though not clearly, in {ahead}."] if ahead else []
    sentences += [f"It is equal in {equal}."] if equal else []
    sentences += [f"It is behind, though not clearly, in {behind}."] if behind else []
    sentences += [f"It loses in {loses}."] if loses else []
    return " ".join(sentences)
