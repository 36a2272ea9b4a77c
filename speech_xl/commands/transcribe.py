"""`speech-xl transcribe`: what a recording or a memory says, as text, JSON or subtitles."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from speech_xl.commands.options import add_memory, add_model, add_span, get_memory, load_model, parse_span
from speech_xl.documents import transcript_document
from speech_xl.errors import OutputError
from speech_xl.plain_text import harmless
from speech_xl.transcript import FORMATS, text_lines, transcribe
from speech_xl.whole_file import whole_file


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog=prog, description="Write down what a recording or a memory (.sxl) says.")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--format", choices=FORMATS, help="default: by the output's name, else txt")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: print it")
    add_span(parser)
    add_model(parser)
    add_memory(parser)
    return parser


def main(words: list[str], prog: str) -> int:
    """Run the command -> its exit code."""
    arguments = build_parser(prog).parse_args(words)
    span, output = parse_span(arguments), arguments.output
    kind = arguments.format or (output.suffix[1:].lower() if output and output.suffix[1:].lower() in FORMATS else "txt")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise OutputError(f"{output} is no file in a folder that exists; give another name.")
    model = load_model(arguments)
    memory, _ = get_memory(model, arguments.recording, arguments, span)
    told = transcribe(model, memory, *span)
    # Printed lines show how far it is; a file does not.
    segments = tqdm(
        told, total=memory.intervals if span == (None, None) else None, unit="segment", disable=output is None
    )
    if kind == "json":
        document = transcript_document(arguments.recording, model, memory, segments)
        lines = iter([json.dumps(document, indent=2)])
    else:
        lines = text_lines(segments, kind)
    if output is not None:
        text = "".join(f"{line}\n" for line in lines)
        with whole_file(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return 0
    for line in lines:
        print(harmless(line), flush=True)
    return 0
