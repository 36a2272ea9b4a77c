"""The kill campaign: a command is killed without warning, run again, and must end as if nothing had been.

Moments are drawn evenly over the time that the command takes undisturbed, and every place is tried, too, where it is
about to change a name in its folder: before a rename, a new file, a deletion. After each kill what lies there under a
final name is whole. A run that goes on after a kill may be killed again.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from reliability.findings import Report
from reliability.forks import Ended, Kill, run, warm_up
from reliability.subjects import KILLED, SUBJECTS, Files, Subject

MEASURED_RUNS = 2
KILLS_IN_A_ROW = 3  # at most: then the command may end
ROOM = 1.05  # moments are drawn up to so many times the measured duration: it varies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The campaign's own flags."""
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="of each command, at random moments (100)")
    parser.add_argument("--of", nargs="+", default=[*KILLED], choices=[*SUBJECTS], help="which commands")


class Trials:
    """Kills of one subject, in a folder of their own."""

    def __init__(self, subject: Subject, folder: Path, seed: int, report: Report):
        self._subject, self._folder, self._seed, self._report = subject, folder, seed, report
        self._whole = folder / "undisturbed"
        self._seconds, self._changes = 0.0, 0  # of an undisturbed run
        self._counts = {"kills at random moments": 0, "kills at changes": 0, "ended first": 0, "runs that went on": 0}

    def run_through(self) -> None:
        """Make what an undisturbed command leaves, and see that it leaves the same every time."""
        times, others = [], []
        for number in range(MEASURED_RUNS):
            folder = self._whole if not number else self._folder / "again"
            self._start(folder)
            ended = self._run(folder)
            if ended.code != 0:
                raise RuntimeError(f"{self._subject.name} fails undisturbed:\n{ended.errors}")
            times.append(ended.seconds)
            others.append(self._subject.files(folder))
            self._changes = ended.changes
        if others[0] != others[1]:
            names = sorted(n for n in {**others[0], **others[1]} if others[0].get(n) != others[1].get(n))
            raise RuntimeError(f"{self._subject.name} leaves something else each time: {', '.join(names)}")
        shutil.rmtree(self._folder / "again")
        self._seconds = sum(times) / len(times)

    def at_random(self, kills: int) -> None:
        """Kill so many times, at moments drawn from the seed."""
        trial = 0
        while self._counts["kills at random moments"] < kills:
            dice = random.Random(f"{self._seed}/{self._subject.name}/{trial}")
            chosen = [dice.uniform(0, ROOM * self._seconds) for _ in range(dice.randint(1, KILLS_IN_A_ROW))]
            self._try(f"trial {trial}", [Kill(seconds=seconds) for seconds in chosen])
            trial += 1

    def at_changes(self) -> None:
        """Kill once at every change of the disk that undisturbed work makes."""
        for change in range(self._changes):
            self._try(f"change {change}", [Kill(change=change)])

    def _try(self, name: str, kills: Sequence[Kill]) -> None:
        folder = self._folder / "disturbed"
        before = self._start(folder)
        done: list[str] = []
        for kill in kills:
            ended = self._run(folder, kill)
            if not ended.is_killed:
                self._counts["ended first"] += 1
                break
            self._counts["kills at changes" if kill.seconds is None else "kills at random moments"] += 1
            done.append(str(kill))
            if wrong := self._subject.half_written(folder, self._whole, before):
                self._found(name, done, f"half-written: {', '.join(wrong)}")
        is_done = self._subject.files(folder) == self._subject.files(self._whole)
        last = self._run(folder)
        self._counts["runs that went on"] += 1
        if last.code != 0 and not (last.code == 2 and is_done):  # some refuse to do again what is done
            self._found(name, done, f"the command, run again, ends with {last.code}: {last.errors[-2000:]}")
        else:
            self._compare(name, done, folder)
        shutil.rmtree(folder)

    def _compare(self, name: str, done: list[str], folder: Path) -> None:
        expected, found = self._subject.files(self._whole), self._subject.files(folder)
        for what, names in (
            ("lost", expected.keys() - found.keys()),
            ("left behind", found.keys() - expected.keys()),
            ("not the same", {n for n in expected.keys() & found.keys() if expected[n] != found[n]}),
        ):
            if names:
                self._found(name, done, f"{what}: {', '.join(sorted(names))}")

    def _start(self, folder: Path) -> Files:
        """A folder as it is before the command."""
        folder.mkdir()
        self._subject.start(folder)
        return self._subject.files(folder)

    def _found(self, name: str, done: list[str], what: str) -> None:
        self._report.find(f"{self._subject.name}, {name}, killed {', then '.join(done) or 'not at all'}: {what}")

    def _run(self, folder: Path, kill: Kill | None = None) -> Ended:
        return run(lambda: self._subject.main(folder), folder, self._folder / "said", kill)

    def figures(self) -> dict[str, float]:
        """How often what happened, and the seconds and changes of undisturbed work."""
        return self._counts | {"undisturbed seconds": round(self._seconds, 2), "changes": self._changes}


def prepare(name: str, make: Callable[[Path], Subject], output: Path) -> Subject:
    """A subject with its inputs below `output`, and all that it imports."""
    inputs, warm = output / name / "inputs", output / name / "warm"
    for folder in (inputs, warm):
        folder.mkdir(parents=True)
    subject = make(inputs)
    subject.start(warm)
    warm_up(lambda: subject.main(warm), warm, output / name / "said")
    shutil.rmtree(warm)
    return subject


def main(arguments: argparse.Namespace, output: Path) -> int:
    """Run the campaign -> 0 if it has found nothing."""
    report = Report("kill", arguments.seed, output)
    for name in arguments.of:
        subject = prepare(name, SUBJECTS[name], output)
        trials = Trials(subject, output / subject.name, arguments.seed, report)
        try:
            trials.run_through()
            trials.at_changes()
            trials.at_random(arguments.kills)
        finally:  # stopped by Ctrl-C, too: what was done is told
            report.note(subject.name, trials.figures())
    return report.finish()
