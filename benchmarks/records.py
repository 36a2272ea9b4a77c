"""What has been measured: one JSON file a measurement in the output folder, and a report of all of them.

A measurement that is there already is not made again, so a run that was broken off goes on. Each one is a fresh child
process, so that nothing is warm from the one before and peak memory is its own. It knows no models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_in_words
from speech_xl.errors import OutputError, SpeechXLError
from speech_xl.whole_file import whole_file

Settings = dict[str, Any]
Result = dict[str, Any]


class MeasurementError(SpeechXLError):
    """A measurement that came to no result."""


@dataclass(frozen=True)
class Record:
    """One measurement, as its file holds it."""

    kind: str  # the module of benchmarks/ that made it
    settings: Settings
    machine: dict[str, Any]
    date: str
    result: Result


class Records:
    """The measurements of one folder, on this machine."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.machine = describe_machine()

    def path(self, kind: str, settings: Settings) -> Path:
        """Where a measurement is kept: its name says the first settings, and a hash all of them and the machine."""
        said = json.dumps([settings, self.machine], sort_keys=True)
        shown = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(str(v) for v in settings.values() if v is not None))[:60].strip(
            "-"
        )
        return self.folder / f"{kind}-{shown}-{hashlib.sha256(said.encode()).hexdigest()[:8]}.json"

    def find(self, kind: str, settings: Settings) -> Result | None:
        """The result of a measurement that was made before."""
        path = self.path(kind, settings)
        return json.loads(path.read_text(encoding="utf-8"))["result"] if path.is_file() else None

    def get(self, kind: str, settings: Settings, limit: float | None = None) -> Result:
        """The result of a measurement, made now if it is not there; MeasurementError if it fails or takes over `limit` s."""
        if (found := self.find(kind, settings)) is not None:
            return found
        result = in_child(kind, settings, limit)
        record = Record(kind, settings, self.machine, time.strftime("%Y-%m-%d", time.gmtime()), result)
        self.write(self.path(kind, settings).name, json.dumps(dataclasses.asdict(record), indent=1) + "\n")
        return result

    def write(self, name: str, text: str) -> None:
        """A file of the folder, whole or not at all; OutputError where that is impossible."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be made ({error.strerror}); name another --output.") from error
        with whole_file(self.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def all(self, kind: str) -> list[Record]:
        """The measurements of a kind, in the order of their names."""
        found = []
        for path in sorted(self.folder.glob(f"{kind}-*.json")):
            try:
                found.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
            except (ValueError, TypeError) as error:
                raise OutputError(f"{path} is no measurement ({error}); delete it and run again.") from error
        return [record for record in found if record.kind == kind]

    def write_report(self, kinds: Sequence[str]) -> str:
        """FOLDER/report.md: the tables of every kind that has been measured, one for each machine -> its text."""
        parts = ["# Benchmarks\n"]
        for kind in kinds:
            records = self.all(kind)
            for words in dict.fromkeys(machine_in_words(record.machine) for record in records):
                here = [record for record in records if machine_in_words(record.machine) == words]
                dates = sorted({record.date for record in here})
                when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
                parts.append(f"## {kind.capitalize()}\n\n{words}; measured {when}.\n")
                parts.append(importlib.import_module(f"benchmarks.{kind}").table(here))
        text = "\n".join(parts)
        self.write("report.md", text)
        return text


def in_child(kind: str, settings: Settings, limit: float | None = None) -> Result:
    """Measure in a fresh process; its progress goes to our stderr."""
    command = [sys.executable, "-m", "benchmarks.records", kind, json.dumps(settings)]
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{kind} took more than {limit:.0f} s ({settings}); measure less at a time.") from None
    if run.returncode:
        raise MeasurementError(f"{kind} failed ({settings}); see what it said above, and run it again to continue.")
    return json.loads(run.stdout.splitlines()[-1])


def markdown_table(columns: dict[str, Callable[[Record], Any]], records: list[Record]) -> str:
    """One row a record; a column is a title and what stands under it, "" for None."""

    def cell(value: Any) -> str:
        return (
            ""
            if value is None
            else f"{value:.3g}"
            if isinstance(value, float) and abs(value) < 100
            else (f"{value:,.0f}" if isinstance(value, float) else str(value))
        )

    rows = ["| " + " | ".join(cell(of(record)) for of in columns.values()) + " |" for record in records]
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *rows, ""])


def measure(words: list[str]) -> int:
    """What the child does: measure one thing, and print its result as the last line."""
    kind, settings = words[0], json.loads(words[1])
    try:
        result = importlib.import_module(f"benchmarks.{kind}").measure(**settings)
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1:]))
