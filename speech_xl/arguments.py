"""What is typed on the command line, as values: ratios, amounts of memory, files of questions.

Times are clock.py's. It knows no commands.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

from speech_xl.errors import QuestionError, ScheduleError
from speech_xl.schedule import Ratio

UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_ratio(text: str) -> Ratio:
    """ "raw" -> None, or a whole number; ScheduleError for anything else."""
    if text == "raw":
        return None
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise ScheduleError(f"{text[:40]!r} is not a ratio; give raw or a whole number such as 8.")
    return int(text)


def parse_bytes(text: str) -> int:
    """ "64MiB" -> bytes; ScheduleError for what is no amount."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].lower() not in UNITS:
        raise ScheduleError(f"{text[:40]!r} is not an amount of memory; write it like 64MiB.")
    return int(float(match[1]) * UNITS[match[2].lower()])


def parse_tokens(text: str) -> int:
    """A whole number from 1; QuestionError for anything else."""
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise QuestionError(f"{text[:40]!r} is not a number of tokens; give a whole number such as 256.")
    return int(text)


def positive(unit: str) -> Callable[[str], float]:
    """For argparse: a number of `unit` ("hours") above 0 and below a million."""

    def parse(text: str) -> float:
        try:
            if 0 < float(text) < 1e6:
                return float(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of {unit}")

    return parse


def read_questions(path: Path) -> list[str]:
    """One question a line, or JSON lines with a "question" field."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionError(f"The questions in {path} cannot be read ({error}); give a text file.") from error
    questions = []
    for number, line in enumerate(map(str.strip, lines), 1):
        question: object = line
        if line.startswith("{"):
            try:
                question = json.loads(line)["question"]
            except (ValueError, KeyError, TypeError, RecursionError):
                question = None
        if not isinstance(question, str):
            raise QuestionError(f'{path}, line {number}: a JSON line needs a "question" field with text.')
        if question:
            questions.append(question)
    if not questions:
        raise QuestionError(f"{path} has no questions; write one per line.")
    return questions
