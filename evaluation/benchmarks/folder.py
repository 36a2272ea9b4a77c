"""The files of a benchmark's folder: found, read and checked, with one sentence where they are not what is expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.benchmarks.benchmark import BenchmarkError

OTHER = "this is not the layout that docs/benchmarks_public.md describes, perhaps another version"


def find(folder: Path, name: str) -> Path | None:
    """The one file or folder of that name in the folder or below; None: there is none."""
    found = sorted(folder.rglob(name))
    if len(found) > 1:
        raise BenchmarkError(
            f"{folder} holds {len(found)} copies of {name} ({found[0]}, {found[1]}, ...); keep only one of them."
        )
    return found[0] if found else None


def read_text(path: Path) -> str:
    """A UTF-8 file; BenchmarkError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    except UnicodeDecodeError:
        raise BenchmarkError(f"{path} is not UTF-8 text; download it again.") from None


def read_json(path: Path) -> Any:
    """A JSON file's value; BenchmarkError if it is none."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise BenchmarkError(f"{path} is not JSON; download it again.") from None


def read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """-> (where it stands, one line's object) of each line that is not empty."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise BenchmarkError(f"{path}, line {number} is not JSON; download the file again.") from None
            rows.append((f"{path}, line {number}", checked(row, dict, f"{path}, line {number}", "one object")))
    return rows


def checked(value: Any, kind: type, where: str, what: str) -> Any:
    """`value` if it is of that type, and not empty; BenchmarkError that misses `what` there."""
    if not isinstance(value, kind) or not value or (isinstance(value, str) and not value.strip()):
        raise BenchmarkError(f"{where}: there is no {what}; {OTHER}.")
    return value


def text(entry: dict[str, Any], name: str, where: str) -> str:
    """A field that must be text; BenchmarkError, naming the place, if it is not."""
    return checked(entry.get(name), str, where, f'"{name}"')
