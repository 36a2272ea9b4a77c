"""What a stage leaves on disk while it trains: a state to resume from, metrics, and whether it is done.

A stage's folder is named after its fingerprint: another recipe, seed, data or model trains in another folder, and
nothing that was trained is ever taken for something else or overwritten.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from speech_xl.errors import OutputError
from speech_xl.whole_file import do_with, whole_file, whole_lines

FORMAT = 1  # raised when the same recipe would train otherwise


def stage_fingerprint(facts: dict[str, Any]) -> str:
    """SHA-256 of everything that decides what a stage's training yields."""
    return hashlib.sha256(json.dumps(facts | {"format": FORMAT}, sort_keys=True, default=str).encode()).hexdigest()


class StageFolder:
    """One stage's folder: state.pt while it trains, done.json when its model is written, metrics.csv throughout."""

    def __init__(self, folder: Path, save_minutes: float):
        self.path = folder
        do_with(self.path, lambda: self.path.mkdir(parents=True, exist_ok=True))
        self._save_seconds = save_minutes * 60
        self._saved_at = time.monotonic()
        self._board: SummaryWriter | None = None

    @property
    def model(self) -> Path:
        """The checkpoint that the stage yields."""
        return self.path / "model"

    @property
    def is_done(self) -> bool:
        """Whether the stage has ended."""
        return (self.path / "done.json").exists()

    @property
    def is_due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved_at >= self._save_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state whole or not at all: a kill leaves the old one or the new one."""
        path = self.path / "state.pt"
        with whole_file(path) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # what torch says of a full disk
                raise OutputError(f"{path} cannot be written; make room and run the same command again.") from error
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None at the start."""
        path = self.path / "state.pt"
        return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None

    def shards(self) -> list[Path]:
        """Folders of sharded states (sharded_state.py), the newest last."""
        return sorted(self.path.glob("state-*"), key=lambda path: int(path.name.partition("-")[2]))

    def was_saved(self) -> None:
        """Count save_minutes from here."""
        self._saved_at = time.monotonic()

    def finish(self, facts: dict[str, Any]) -> None:
        """Mark the stage as done; its state is no longer needed."""
        with whole_file(self.path / "done.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
        self.drop_state()

    def drop_state(self) -> None:
        """Delete the state of a stage that is done; also one that a kill has left."""
        (self.path / "state.pt").unlink(missing_ok=True)
        for path in self.shards():
            shutil.rmtree(path)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that a kill made undone, and a row that it cut short."""
        path = self.path / "metrics.csv"
        if path.exists():
            header, *rows = [*whole_lines(path)] or [b""]
            with whole_file(path) as temporary:
                temporary.write_bytes(header + b"".join(row for row in rows if int(row.split(b",", 1)[0]) <= step))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append (step, metric, value) rows to metrics.csv and to TensorBoard's file."""
        path = self.path / "metrics.csv"

        def append() -> None:
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                if not file.tell():
                    writer.writerow(("step", "metric", "value"))
                writer.writerows((step, name, f"{value:.6g}") for name, value in metrics.items())

        do_with(path, append)
        if self._board is None:
            self._board = SummaryWriter(str(self.path), purge_step=step)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """Close the event log."""
        if self._board is not None:
            self._board.close()
