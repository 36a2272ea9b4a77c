"""LongSpeech (arXiv 2601.13539): eight tasks over recordings of ten minutes, in several languages.

The folder is that of the public data set: LongSpeechQA/TASK/test.jsonl, whose lines are a user's message, with the
recording, and the assistant's, which is the right answer. The scores are in longspeech_scores.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.benchmarks.benchmark import Benchmark, BenchmarkError
from evaluation.benchmarks.folder import OTHER, checked, read_json_lines, text
from evaluation.benchmarks.longspeech_scores import score
from evaluation.data import Line

ASR = "ASR"
SIZES = {  # of the public test split, in the order of the table
    ASR: 15274,
    "translation": 6309,
    "summary": 937,
    "speaker_count": 1263,
    "content_separation": 1263,
    "language_detection": 3170,
    "emotionQA": 1263,
    "Temporal_Relative_QA": 1262,
}


def read(folder: Path) -> list[Line]:
    """The lines of every task in the folder; BenchmarkError if there are none."""
    lines: list[Line] = []
    for task in SIZES:
        path = folder / "LongSpeechQA" / task / "test.jsonl"
        if path.is_file():
            lines += [_line(row, task, number, where) for number, (where, row) in enumerate(read_json_lines(path), 1)]
    if not lines:
        raise BenchmarkError(
            f"{folder} holds no LongSpeechQA/TASK/test.jsonl with lines in it; name the folder of the public data set, "
            "with LongSpeechQA/ and LongSpeech_p1/ in it."
        )
    return lines


def _line(row: dict[str, Any], task: str, number: int, where: str) -> Line:
    if row.get("task", task) != task:
        raise BenchmarkError(f"{where}: the task is {row['task']!r}, in the file of {task}; {OTHER}.")
    user, assistant = _messages(row.get("messages"), where)
    fields = {"id": f"{task} {number}", "audio": text(user, "audio", where), "kind": task}
    answer = text(assistant, "content", where)
    fields |= {"text": answer} if task == ASR else {"question": text(user, "content", where), "answer": answer}
    return Line(where, fields | {"language": text(row, "language", where)})


def _messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """The first two messages; the public viewer shows each, or all of them, as JSON in a text."""
    try:
        messages = json.loads(messages) if isinstance(messages, str) else messages
        messages = [json.loads(m) if isinstance(m, str) else m for m in checked(messages, list, where, '"messages"')]
    except (ValueError, RecursionError):
        messages = []
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages[:2]]
    if roles != ["user", "assistant"]:
        raise BenchmarkError(f"{where}: there is no message of the user with one of the assistant behind it; {OTHER}.")
    return messages[:2]


LONGSPEECH = Benchmark("LongSpeech", "arXiv 2601.13539", SIZES, read, score)
