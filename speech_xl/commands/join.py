"""`speech-xl join`: memories of several recordings as one .sxl file, which is asked about all of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from speech_xl.clock import clock
from speech_xl.commands.options import add_model, check_memory_path, load_model
from speech_xl.joining import join_memories
from speech_xl.memory import load_memory, save_memory
from speech_xl.plain_text import one_line
from speech_xl.schedule import format_bytes


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The options of this subcommand."""
    parser = argparse.ArgumentParser(prog=prog, description="Join memories of several recordings, in this order.")
    parser.add_argument("memories", nargs="+", type=Path, metavar="MEMORY.sxl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="JOINED.sxl")
    add_model(parser)
    parser.set_defaults(memory_bits=16)
    return parser


def main(words: list[str], prog: str) -> int:
    """Run the command -> its exit code."""
    arguments = build_parser(prog).parse_args(words)
    output = arguments.output
    check_memory_path(output)
    model = load_model(arguments)
    memory = join_memories(model, [load_memory(path, model) for path in arguments.memories])
    save_memory(memory, output, model)
    count = len(arguments.memories)
    kept = f"{clock(memory.seconds)}, {memory.slots} slots, {format_bytes(memory.bytes)}"
    print(one_line(f"{output}: {count} memories, {kept}"))
    return 0
