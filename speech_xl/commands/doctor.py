"""`speech-xl doctor`: whether this machine hears and answers as it should; exit code 2 if something is amiss."""

from __future__ import annotations

import argparse

from speech_xl.commands.options import add_model
from speech_xl.doctor import examine
from speech_xl.errors import BackendError
from speech_xl.plain_text import one_line


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog=prog, description="Check this machine: backends, numbers, speed.")
    add_model(parser)
    return parser


def main(words: list[str], prog: str) -> int:
    """Run the command -> its exit code; BackendError names what is to be looked at."""
    arguments = build_parser(prog).parse_args(words)
    found = []
    for finding in examine(arguments.model, arguments.backend):
        print(one_line(f"{finding.subject}: {finding.text}"), flush=True)
        if finding.advice:
            print(one_line(f"  -> {finding.advice}"), flush=True)
            found.append(finding.subject)
    if found:
        raise BackendError(f"Look at {', '.join(found)}: see above for what to do.")
    print("All is well.")
    return 0
