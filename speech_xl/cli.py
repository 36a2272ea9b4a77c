"""`speech-xl`, which is `python -m speech_xl` too: calls a subcommand, and turns errors into sentences.

Answers and JSON go to stdout, progress and errors to stderr. Wrong input is one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys

from speech_xl import __version__
from speech_xl.commands import COMMANDS
from speech_xl.errors import MissingPackageError, SpeechXLError
from speech_xl.plain_text import one_line

PROG = "speech-xl"


def build_parser() -> argparse.ArgumentParser:
    """Of the help and of wrong first words; a subcommand parses its own words."""
    parser = argparse.ArgumentParser(prog=PROG, description="Ask recordings of any length.")
    parser.add_argument("--version", action="version", version=f"Speech-XL {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


def call(name: str, words: list[str]) -> int:
    """Import a subcommand and run it -> its exit code."""
    command = COMMANDS[name]
    try:
        code: int = importlib.import_module(command.module).main(words, f"{PROG} {name}")
    except ModuleNotFoundError as error:
        if command.extra is None:
            raise
        raise MissingPackageError.of(name, error.name, command.extra) from error
    return code


def main(words: list[str] | None = None) -> int:
    """Run a subcommand -> the exit code: 0, 2 for wrong input, 130 if it was stopped."""
    words = sys.argv[1:] if words is None else words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file may hold bytes that are no text
    if not words or words[0] not in COMMANDS:
        parser = build_parser()
        parser.parse_args(words)
        parser.error("the command comes first")
    try:
        code = call(words[0], words[1:])
        sys.stdout.flush()  # here, where a closed pipe is still caught
        return code
    except SpeechXLError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python flushes last goes nowhere
        return 0
    except OSError as error:  # a name too long, a folder that may not be entered, a full disk
        said = f"{error.filename or 'A file'}: {error.strerror or error}; name another one."
        print(one_line(said), file=sys.stderr)
        return 2
