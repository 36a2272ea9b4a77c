"""`speech-xl info`: a recording, a memory or a checkpoint in words."""

from __future__ import annotations

import argparse
from pathlib import Path

from speech_xl.checkpoints import SHIPPED, SHIPPED_NAMES
from speech_xl.describe import describe
from speech_xl.plain_text import one_line


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog=prog, description="Describe a recording, a memory or a checkpoint.")
    parser.add_argument("path", help=f"a file, a checkpoint folder, or {' or '.join(SHIPPED_NAMES)}")
    return parser


def main(words: list[str], prog: str) -> int:
    """Run the command -> its exit code."""
    name = build_parser(prog).parse_args(words).path
    path = SHIPPED / name if name in SHIPPED_NAMES else Path(name)
    print("\n".join(one_line(f"{subject}: {value}") for subject, value in describe(path)))
    return 0
