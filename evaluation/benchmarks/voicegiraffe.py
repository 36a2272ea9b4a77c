"""VoiceGiraffe (arXiv 2605.27976): four choices about recordings of an hour, in English and Chinese.

The folder is the public repository with its downloads: benchmark/*.jsonl, the choices inside the question's text, and
audios/ID.wav. Scores are shares of right letters, of all entries and by type, level and language.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from evaluation.benchmarks.benchmark import Answered, Benchmark, BenchmarkError, Scores
from evaluation.benchmarks.folder import OTHER, read_json_lines, text
from evaluation.data import Line

LETTERS = "ABCD"
SUFFIXES = (".wav", ".m4a", ".mp3", ".flac", ".opus")  # of what the public downloader can write
OPTION = re.compile(r"^\s*([A-D])\s*[:：]\s*(.*\S)\s*$")
GROUPS = {"qa_type": "type", "qa_level": "level", "language_type": "language"}
LANGUAGES = {"中文": "Chinese", "英文": "English"}
# As the public scorer looks for a letter: where one is announced, in brackets, alone on its line ...
PATTERNS = (
    re.compile(
        r"^\s*(?:final\s*answer|answer|the\s*answer\s*is|答案|选\s*项|选择)\s*[:：]?\s*[(\[{]?\s*([A-D])\b",
        re.IGNORECASE | re.MULTILINE,
    ),
    re.compile(r"\banswer\s*(?:is|:)\s*[(\[{]?\s*([A-D])\b", re.IGNORECASE),
    re.compile(r"[(\[{]\s*([A-D])\s*[)\]}]"),
    re.compile(r"^\s*([A-D])\s*[.)、\]]?\s*$", re.MULTILINE),
)
STANDING = re.compile(r"\b([A-D])\b")  # ... and at last the last one that stands alone anywhere


def read(folder: Path) -> list[Line]:
    """The lines of the benchmark's one file; BenchmarkError if the folder is not as published."""
    files = sorted((folder / "benchmark").glob("*.jsonl"))
    if len(files) != 1:
        raise BenchmarkError(
            f"{folder / 'benchmark'} holds {len(files)} files of JSON lines instead of one; name the folder of the public "
            "repository, with benchmark/ and audios/ in it."
        )
    lines = []
    for number, (where, entry) in enumerate(read_json_lines(files[0]), 1):
        question, choices = split_options(text(entry, "question", where), where)
        groups = {name: text(entry, name, where) for name in GROUPS}
        lines.append(
            Line(
                where,
                {
                    "id": str(number),
                    "audio": _recording(folder, text(entry, "audio", where)),
                    "kind": groups["qa_type"],
                    "question": question,
                    "answer": text(entry, "answer", where),
                    "choices": choices,
                    **groups,
                },
            )
        )
    return lines


def split_options(question: str, where: str) -> tuple[str, dict[str, str]]:
    """Text that ends with the lines "A: ..." to "D: ..." -> (the question alone, letter -> choice)."""
    rows = question.rstrip().split("\n")
    found = [(number, option) for number, row in enumerate(rows) if (option := OPTION.match(row))][-4:]
    starts, options = [number for number, _ in found], [option for _, option in found]
    asked = "\n".join(rows[: starts[0]]).strip() if starts else ""
    if [option[1] for option in options] != list(LETTERS) or not asked:
        raise BenchmarkError(f"{where}: the question does not end with the choices A to D; {OTHER}.")
    # A choice may go on in the lines behind its first.
    ends = [*starts[1:], len(rows)]
    return asked, {
        option[1]: " ".join([option[2], *" ".join(rows[first + 1 : last]).split()])
        for option, first, last in zip(options, starts, ends, strict=True)
    }


def _recording(folder: Path, named: str) -> str:
    """Where the recording is, relative to the folder: the file's name is that of the video, its ending may differ."""
    name = Path(re.split(r"[/\\]", named)[-1]).stem
    there = (suffix for suffix in SUFFIXES if (folder / "audios" / (name + suffix)).is_file())
    return f"audios/{name}{next(there, '.wav')}"


def read_letter(said: str) -> str | None:
    """The option that an answer names, A to D; None if it names none."""
    for pattern in PATTERNS:
        if found := pattern.search(said):
            return found[1].upper()
    standing = STANDING.findall(said)
    return standing[-1] if standing else None


def score(answered: Sequence[Answered]) -> Scores:
    """Share of right options, overall and by the benchmark's own groups."""
    letters = [read_letter(each.said) for each in answered]
    rights = [letter == each.right for letter, each in zip(letters, answered, strict=True)]
    groups: list[dict[str, list[bool]]] = [{"overall": rights}, *({} for _ in GROUPS), {}]
    for each, right in zip(answered, rights, strict=True):
        names = [each.fields[name] for name in GROUPS]
        names[-1] = LANGUAGES.get(names[-1], names[-1])
        columns = [f"{title} {name}" for title, name in zip(GROUPS.values(), names, strict=True)]
        for group, column in zip(groups[1:], [*columns, f"{names[0]}, {names[-1]}"], strict=True):
            group.setdefault(column, []).append(right)
    figures: dict[str, float | None] = {
        name: 100 * sum(group[name]) / len(group[name]) for group in groups for name in sorted(group)
    }
    silent = letters.count(None)
    return Scores(figures, [f"{silent} of {len(letters)} answers name no letter and count as wrong."] if silent else [])


VOICEGIRAFFE = Benchmark("VoiceGiraffe", "arXiv 2605.27976", {"all": 1500}, read, score)
