"""The subcommands of `speech-xl`: one table, from which each is imported when it is called and not before.

A subcommand is a module with `main(words, prog)`: it parses `words` under the name `prog`, does its work and
returns an exit code. It may raise a SpeechXLError, whose message cli.py prints. The modules in this folder are
the core's own; the others hand over to the programs that `python -m NAME` starts as well.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A subcommand: where it is, and what it needs."""

    module: str
    help: str  # a line of `speech-xl --help`
    extra: str | None = None  # the extra of pyproject.toml that holds the packages it needs


COMMANDS = {
    "ask": Command("speech_xl.commands.ask", "answer questions about a recording or a memory (.sxl)"),
    "transcribe": Command("speech_xl.commands.transcribe", "transcribe a recording or a memory (.sxl)"),
    "listen": Command("speech_xl.commands.listen", "hear a recording once and keep its memory"),
    "join": Command("speech_xl.commands.join", "join memories (.sxl) of several recordings into one"),
    "batch": Command("speech_xl.commands.batch", "hear and ask whole folders, resumable, on one machine or on Ray"),
    "info": Command("speech_xl.commands.info", "describe a recording, a memory or a checkpoint"),
    "doctor": Command(
        "speech_xl.commands.doctor", "check this machine: backends, numbers, speed on the shipped example"
    ),
    "serve": Command("server.command", "serve an OpenAI-compatible API over HTTP", extra="serve"),
    "convert": Command("converters.__main__", "convert published weights to a Speech-XL checkpoint"),
    "train": Command("training.__main__", "train a checkpoint on JSON lines", extra="train"),
    "evaluate": Command(
        "evaluation.__main__", "measure how accurate a model's answers are, at every ratio", extra="train"
    ),
}
