"""The hostile campaign: names, texts and files that mean harm, given to commands, to the server and to the page.

Each case ends well or with one sentence and exit code 2; nothing in a name is run, nothing is written elsewhere, no code
in a file is executed, and a small file that claims or holds days of sound takes no more memory than any other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

from reliability.findings import Report
from reliability.forks import run, warm_up
from reliability.hostile_files import FILES, NAMES
from reliability.hostile_page import page_findings
from reliability.hostile_server import server_findings
from speech_xl import cli
from tests.tiny import save_checkpoint, tiny_config, write_sound

MOST_RESIDENT = 2 * 2**20  # KiB that a command may take beside what this process has
CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)  # but tab, \r and \n
CANARY = "canary"  # what a hostile file writes where it is executed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The campaign's own flags."""
    parser.add_argument("--of", nargs="+", default=PARTS, choices=PARTS, help="which parts")


class House:
    """A folder with a model, a recording, and a way to run commands in it."""

    def __init__(self, folder: Path, report: Report):
        self.folder, self.report = folder, report
        self.model = save_checkpoint(folder / "tiny", tiny_config())
        self.talk = write_sound(folder / "talk.wav", 2.0)
        self.counts = {"ended well": 0, "refused": 0}

    def warm_up(self) -> None:
        """Import what commands will want."""
        words = ["--model", str(self.model), "--backend", "torch"]
        commands = [
            ["batch", str(self.talk), "--transcribe", "--output", str(self.folder / "warm"), *words],
            ["ask", str(self.talk), "what?", *words],
            ["info", str(self.model)],
        ]
        warm_up(lambda: max(map(cli.main, commands)), self.folder, self.folder / "said")

    def speech_xl(self, what: str, words: Sequence[str], at: Path, codes: tuple[int, ...] = (0, 2)) -> int:
        """Run a command in the folder `at`; whatever is wrong with its end is a finding."""

        def main() -> int:
            os.chdir(at)
            code = cli.main([*words])
            used = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
            return code if used < before + MOST_RESIDENT else 100

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            ended = run(main, at, self.folder / "said")
        except TimeoutError as error:
            self.report.find(f"{what}: {error}")
            return -1
        if ended.code == 100:
            self.report.find(f"{what}: more than 2 GiB")
        elif ended.code not in codes:
            self.report.find(f"{what}: exit code {ended.code}: {ended.errors[-2000:]}")
        elif ended.code == 2 and (complaint := ended.complaint):
            self.report.find(f"{what}: {complaint}")
        else:
            self.counts["refused" if ended.code else "ended well"] += 1
        if strange := sorted(set(CONTROLS.findall(ended.output + ended.errors))):
            self.report.find(f"{what}: the terminal gets {strange}")
        if found := sorted(path for path in self.folder.rglob(CANARY)):
            self.report.find(f"{what}: code was executed, it wrote {found[0]}")
            found[0].unlink()
        return ended.code


def names(house: House) -> None:
    """Every command, with recordings of hostile names; all of them in one batch."""
    model = ["--model", str(house.model), "--backend", "torch"]
    talks = house.folder / "talks"
    talks.mkdir()
    data = house.talk.read_bytes()
    for number, name in enumerate(NAMES):
        at = house.folder / f"name{number}"
        at.mkdir()
        path, memory = at / name, (at / name).with_suffix(".sxl")
        try:
            path.write_bytes(data)
            (talks / name).write_bytes(data)
        except OSError as error:
            house.report.skip(f"the name {name!r}", f"this file system refuses it ({error.strerror})")
            continue
        for command in (
            ["info", str(path)],
            ["listen", str(path), *model],
            ["info", "--", name],
            ["info", str(memory)],
            ["ask", str(memory), "what is order 4?", "--json", "--max-tokens", "4", *model],
            ["transcribe", str(path), "-o", "said.json", *model],
            ["transcribe", str(path), *model],
        ):
            house.speech_xl(f"{command[0]} of {name!r}", command, at)
        strangers = {os.fsdecode(p) for p in os.listdir(at)} - {path.name, memory.name, "said.json"}
        if strangers:
            house.report.find(f"commands with {name!r} wrote {sorted(strangers)}")
        if not memory.exists():
            house.report.find(f"listen of {name!r} left no memory")
    words = ["batch", str(talks), "--transcribe", "--output", str(house.folder / "out"), *model]
    house.speech_xl("batch of all names", words, house.folder, (0,))
    lines = (house.folder / "out" / "results.jsonl").read_text().splitlines()
    heard = [json.loads(line)["recording"] for line in lines if json.loads(line)["kind"] == "memory"]
    shown = [name for name in os.listdir(talks) if not name.startswith(".")]  # hidden files are not meant
    if len(heard) != len(shown):
        house.report.find(f"batch heard {len(heard)} of {len(shown)} recordings with hostile names")


def files(house: House) -> None:
    """Pickles, archives of code, claims of size, links: each with the commands that would read it."""
    for number, (name, make) in enumerate(FILES.items()):
        at = house.folder / f"file{number}"
        at.mkdir()
        for command, codes in make(at, house):
            house.speech_xl(f"{name}: {command[0]}", command, at, codes)


def server(house: House) -> None:
    """Send hostile requests to a running server."""
    for sentence in server_findings(house.model, house.folder / "server"):
        house.report.find(sentence)


def page(house: House) -> None:
    """Show the page hostile names and words."""
    for sentence in page_findings(house.model, house.folder / "page"):
        house.report.find(sentence)


ALL: dict[str, Callable[[House], None]] = {"names": names, "files": files, "server": server, "page": page}
PARTS = tuple(ALL)


def main(arguments: argparse.Namespace, output: Path) -> int:
    """Run the campaign -> 0 if it has found nothing."""
    report = Report("hostile", arguments.seed, output)
    house = House(output, report)
    house.warm_up()
    for part in arguments.of:
        ALL[part](house)
        report.note(part, dict(house.counts))
    return report.finish()
