"""A benchmark's own table: its figures of every method, with what the method takes underneath.

It knows figures and notes; the scores themselves are the benchmarks' files.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.benchmarks.benchmark import Answered, Benchmark, Scores
from evaluation.data import Data, Line
from evaluation.report import ALL, Row
from evaluation.results import ResultsFile


@dataclass(frozen=True)
class Scored:
    """The scores of each row, and what the data lack of the whole benchmark, a sentence each."""

    rows: Sequence[Row]
    scores: Sequence[Scores]
    lacks: Sequence[str]

    def table(self) -> str:
        """Markdown: a figure a line, a method a column."""
        names = list(dict.fromkeys(name for scores in self.scores for name in scores.figures))
        lines = [["", *(row.method.label for row in self.rows)]]
        for name in names:
            values = [scores.figures.get(name) for scores in self.scores]
            lines.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
        costs = [row.costs[ALL] for row in self.rows]
        lines.append(["KiB a minute", *(f"{cost.bytes_per_minute / 1024:.0f}" for cost in costs)])
        lines.append(["times real time", *(f"{cost.speed:.1f}" for cost in costs)])
        lines.append(["s an answer", *(f"{cost.answer_seconds:.2f}" for cost in costs)])
        lines.insert(1, ["---"] * len(lines[0]))
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def markdown(self, benchmark: Benchmark) -> str:
        """A section of the report: what was measured, the table, and what the figures lack."""
        notes = [
            f"{row.method.label}: {note}" for row, s in zip(self.rows, self.scores, strict=True) for note in s.notes
        ]
        if all(scores.notes == self.scores[0].notes for scores in self.scores):
            notes = self.scores[0].notes
        said = "".join(f"- {note}\n" for note in [*self.lacks, *notes])
        return f"## {benchmark.title}\n\n{benchmark.paper}; in percent, as docs/benchmarks_public.md says.\n\n{self.table()}\n{said}"

    def csv(self, name: str) -> str:
        """Lines behind those of report.csv, of the kind `name`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row, scores in zip(self.rows, self.scores, strict=True):
            ratio = row.method.ratio_label
            for metric, value in scores.figures.items():
                if value is not None:
                    writer.writerow([row.method.name, ratio, name, metric, f"{value:.6f}", *[""] * 7])
        return text.getvalue()


def score_all(
    benchmark: Benchmark, lines: Sequence[Line], data: Data, rows: Sequence[Row], results: ResultsFile
) -> Scored:
    """Score every method's answers to the same lines."""
    fields = {line.fields["id"]: line.fields for line in lines}
    ids = [item.id for item in data.items]
    scores = []
    for row in rows:
        said = [result.said for result in results.of(row.method, ids)]
        answered = [Answered(item, fields[item.id], words) for item, words in zip(data.items, said, strict=True)]
        scores.append(benchmark.score(answered))
    return Scored(rows, scores, _lacks(benchmark, data))


def _lacks(benchmark: Benchmark, data: Data) -> list[str]:
    there = Counter(item.kind for item in data.items) | Counter({ALL: len(data.items)})
    short = [
        f"{there[kind]} of {size}" + (f" {kind}" if kind != ALL else "")
        for kind, size in benchmark.sizes.items()
        if there[kind] != size
    ]
    return [f"This is not the whole public version; entries that were asked: {', '.join(short)}."] if short else []
