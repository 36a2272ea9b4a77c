"""The disk campaign: commands on disks of every size up to what they write, and on disks that can only be read.

A command says in one sentence that it cannot write and ends with exit code 2; nothing half-written is left; and with room
the same command ends as an undisturbed one. A limit on the size of a file stands for a disk that fills up under a writer.
"""

from __future__ import annotations

import argparse
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from reliability.findings import Report
from reliability.forks import Ended, run
from reliability.kill import prepare
from reliability.mounts import change_disk, enter_namespace, small_disk, used_bytes
from reliability.stores import STORES
from reliability.subjects import SUBJECTS, Subject

ROOMY = 64 * 2**20  # bytes
SHARES = (0.0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.97)  # of what an undisturbed run leaves there
SMALLEST_LIMIT = 4096  # bytes of a file: what a command says goes to files, too
ALL = SUBJECTS | STORES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The campaign's own flags."""
    parser.add_argument("--of", nargs="+", default=[*ALL], choices=[*ALL], help="which commands and stores")


class Disks:
    """One subject on disks of its own."""

    def __init__(self, subject: Subject, folder: Path, report: Report):
        self._subject, self._folder, self._report = subject, folder, report
        self._disk, self._whole = folder / "disk", folder / "undisturbed"
        self._counts = {"refused": 0, "had room": 0}

    def run_through(self) -> None:
        """Once undisturbed: how much room the work takes, and what it leaves; RuntimeError if it fails."""
        with small_disk(self._disk, ROOMY):
            self._subject.start(self._disk)
            before = used_bytes(self._disk)
            ended = self._run()
            if ended.code != 0:
                raise RuntimeError(f"{self._subject.name} fails undisturbed:\n{ended.errors}")
            self._size = used_bytes(self._disk) - before
            shutil.copytree(self._disk, self._whole)
            self._sizes = [path.stat().st_size for path in self._whole.rglob("*") if path.is_file()] or [0]

    def fill(self) -> None:
        """On disks that are full after a part of the work."""
        for share in SHARES:
            with small_disk(self._disk, ROOMY):
                self._subject.start(self._disk)
                change_disk(self._disk, f"size={max(4096, used_bytes(self._disk) + round(share * self._size))}")
                self._try(f"a disk of {share:.0%} of the room", lambda: change_disk(self._disk, f"size={ROOMY}"))

    def limit_files(self) -> None:
        """Where no file may be larger than a part of the largest."""
        for largest in sorted({max(SMALLEST_LIMIT, max(self._sizes) * part // 100) for part in (1, 30, 60, 99)}):
            with small_disk(self._disk, ROOMY):
                self._subject.start(self._disk)
                self._try(f"files of at most {largest} bytes", lambda: None, largest)

    def forbid(self) -> None:
        """On a disk that can only be read."""
        with small_disk(self._disk, ROOMY):
            self._subject.start(self._disk)
            change_disk(self._disk, "ro")
            self._try("a disk that can only be read", lambda: change_disk(self._disk, "rw"))

    def _try(self, what: str, make_room: Callable[[], None], largest_file: int | None = None) -> None:
        before = self._subject.files(self._disk)
        ended = self._run(largest_file)
        if ended.code == 0:
            self._counts["had room"] += 1
        elif complaint := ended.complaint:
            self._found(what, complaint)
        else:
            self._counts["refused"] += 1
        if wrong := self._subject.half_written(self._disk, self._whole, before):
            self._found(what, f"half-written: {', '.join(wrong)}")
        make_room()
        again = ended if ended.code == 0 else self._run()
        if again.code != 0:
            self._found(what, f"the same command with room ends with {again.code}: {again.errors[-1500:]}")
            return
        expected, found = self._subject.files(self._whole), self._subject.files(self._disk)
        if names := sorted(n for n in {**expected, **found} if expected.get(n) != found.get(n)):
            self._found(what, f"the same command with room leaves something else: {', '.join(names)}")

    def _run(self, largest_file: int | None = None) -> Ended:
        def main() -> int:
            if largest_file is not None:  # Python ignores the signal, so that a write fails
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            return self._subject.main(self._disk)

        return run(main, self._disk, self._folder / "said")

    def _found(self, what: str, sentence: str) -> None:
        self._report.find(f"{self._subject.name} on {what}: {sentence}")

    @property
    def figures(self) -> dict[str, int]:
        """How often what happened, and the bytes of undisturbed work."""
        return self._counts | {"bytes undisturbed": self._size}


def main(arguments: argparse.Namespace, output: Path) -> int:
    """Run the campaign -> 0 if it has found nothing."""
    report = Report("disk", arguments.seed, output)
    reason = enter_namespace()
    if reason is not None:
        report.skip("full and read-only disks", reason)
        return report.finish()
    for name in arguments.of:
        subject = prepare(name, ALL[name], output)
        disks = Disks(subject, output / subject.name, report)
        disks.run_through()
        disks.fill()
        disks.limit_files()
        disks.forbid()
        report.note(subject.name, disks.figures)
    return report.finish()
