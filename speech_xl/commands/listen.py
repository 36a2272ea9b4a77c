"""`speech-xl listen`: hear a recording once and keep its memory in a .sxl file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from speech_xl.clock import clock
from speech_xl.commands.options import add_memory, add_model, check_memory_path, hear, load_model
from speech_xl.errors import RecordingError
from speech_xl.memory import save_memory
from speech_xl.plain_text import one_line
from speech_xl.schedule import format_bytes


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog=prog, description="Hear a recording once and keep its memory.")
    parser.add_argument("recording", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="default: the recording's name with .sxl")
    add_model(parser)
    add_memory(parser)
    return parser


def main(words: list[str], prog: str) -> int:
    """Run the command -> its exit code."""
    arguments = build_parser(prog).parse_args(words)
    if arguments.recording.is_dir():  # said before a name for the memory is made of it
        raise RecordingError(f"{arguments.recording} is a folder. Name one recording in it.")
    output = arguments.output or arguments.recording.with_suffix(".sxl")
    check_memory_path(output)
    model = load_model(arguments)
    memory, _ = hear(model, arguments.recording, arguments)
    for warning in memory.warnings:
        print(one_line(warning), file=sys.stderr)
    save_memory(memory, output, model)
    kept = f"{clock(memory.seconds)} heard, {memory.slots} slots, {format_bytes(memory.bytes)}"
    print(one_line(f"{output}: {kept}"))
    return 0
