"""What a campaign found and did, as lines on the terminal and as one JSON file in its output folder."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech_xl.whole_file import whole_file


@dataclass
class Report:
    """Of one campaign. `figures` are what is counted, `findings` what should not be, a sentence or more each."""

    campaign: str
    seed: int
    output: Path
    figures: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def find(self, what: str) -> None:
        """Note what should not have happened, and print it."""
        self.findings.append(what)
        print(f"FOUND  {what}", flush=True)

    def skip(self, what: str, reason: str) -> None:
        """Note what could not be tried here, and why."""
        self.skipped.append(f"{what}: {reason}")
        print(f"skipped  {what}: {reason}", flush=True)

    def note(self, name: str, value: Any) -> None:
        """Keep a figure, and all that is known so far: a campaign may be stopped."""
        self.figures[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        self.save()

    def save(self) -> None:
        """Write CAMPAIGN.json: figures, findings and the machine."""
        machine = {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        said = {
            "campaign": self.campaign,
            "seed": self.seed,
            "machine": machine,
            "figures": self.figures,
            "findings": self.findings,
            "skipped": self.skipped,
        }
        with whole_file(self.output / f"{self.campaign}.json") as temporary:
            temporary.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

    def finish(self) -> int:
        """-> the exit code: 0 where nothing was found."""
        self.save()
        print(f"{self.campaign}: {len(self.findings)} findings, {len(self.skipped)} skipped, in {self.output}")
        return 1 if self.findings else 0
