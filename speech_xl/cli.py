"""`python -m speech_xl`: ask a recording, write down its words, listen to it once, or describe a file.

Answers and JSON go to stdout, progress and errors to stderr. Wrong input is one sentence and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from speech_xl.arguments import parse_bytes, parse_ratio, parse_tokens, read_questions
from speech_xl.asking import Answer
from speech_xl.backend import BACKENDS
from speech_xl.clock import clock, parse_time
from speech_xl.conversation import Listening, ask
from speech_xl.describe import describe
from speech_xl.doctor import examine
from speech_xl.documents import answer_document, transcript_document
from speech_xl.errors import BackendError, OutputError, QuestionError, RecordingError, ScheduleError, SpeechXLError
from speech_xl.memory import AudioMemory, load_memory, save_memory
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.prompt import LONGEST_ANSWER
from speech_xl.schedule import format_bytes
from speech_xl.slices import check_span, slice_memory
from speech_xl.storage import MEMORY_BITS
from speech_xl.summarizers import SUMMARIZERS
from speech_xl.transcript import FORMATS, text_lines, transcribe
from speech_xl.whole_file import whole_file

Span = tuple[float | None, float | None]  # start and end in seconds, None where none was given


def load_model(arguments: argparse.Namespace) -> SpeechModel:
    model = SpeechModel.load(arguments.model, arguments.backend, arguments.memory_bits)
    if model.note:
        print(model.note, file=sys.stderr)
    return model


def hear(model: SpeechModel, arguments: argparse.Namespace, span: Span = (None, None)) -> tuple[AudioMemory, float]:
    """Listen with a progress bar on stderr -> the memory, seconds it took."""
    ratio = DEFAULT if arguments.ratio is None else parse_ratio(arguments.ratio)
    budget = None if arguments.memory_budget is None else parse_bytes(arguments.memory_budget)
    listening = Listening(model, arguments.recording, ratio, budget, arguments.summarizer)
    if span != (None, None):  # outside the recording: said before an hour is heard
        try:
            check_span(*span, listening.total_seconds)
        except QuestionError:
            listening.cancel()
            raise
    if arguments.summarizer == "auto" and listening.summarizer.needs_training is False and listening.ratio is not None:
        print(f"Summarizer {listening.summarizer.name}: {listening.summarizer_reason}.", file=sys.stderr)
    bar_format = (
        "listening {n:.0f}/{total:.0f} s |{bar}|{postfix}"
        if listening.total_seconds
        else "listening {n:.0f} s{postfix}"
    )
    with tqdm(total=listening.total_seconds, bar_format=bar_format, file=sys.stderr, leave=True) as bar:
        for heard in listening:
            speed, size = f"{heard.speed:.0f}x real time", format_bytes(heard.memory_bytes)
            bar.set_postfix_str(f"{speed}, memory {size}", refresh=False)
            if bar.total is not None:  # a file may hold more than it declares
                bar.total = max(bar.total, heard.seconds)
            bar.update(heard.seconds - bar.n)
        took = bar.format_dict["elapsed"]
    return listening.memory, took


def get_memory(model: SpeechModel, arguments: argparse.Namespace, span: Span) -> tuple[AudioMemory, float]:
    """Of a memory file or a recording -> the memory, seconds that listening took. Its warnings go to stderr."""
    if arguments.recording.suffix.lower() != ".sxl":
        memory, took = hear(model, arguments, span)
    elif arguments.ratio is not None or arguments.memory_budget is not None:
        raise ScheduleError(
            "A memory has its ratio already; leave out --ratio and --memory-budget, or give the recording."
        )
    else:
        memory, took = load_memory(arguments.recording, model), 0.0
    for warning in memory.warnings:
        print(warning, file=sys.stderr)
    return memory, took


def parse_span(arguments: argparse.Namespace) -> Span:
    start, end = (None if text is None else parse_time(text) for text in (arguments.start, arguments.end))
    check_span(start, end, None)
    return start, end


def run_ask(arguments: argparse.Namespace) -> None:
    questions = list(arguments.question)
    if arguments.questions is not None:
        questions += read_questions(arguments.questions)
    if not questions:
        raise QuestionError("There is no question; write it after the recording or give --questions FILE.")
    span, longest = parse_span(arguments), parse_tokens(arguments.max_tokens)
    model = load_model(arguments)
    for question in questions:
        model.prompt.question_ids(question)  # a question that cannot be asked is said before an hour is heard
    memory, listen_seconds = get_memory(model, arguments, span)
    asked = memory if span == (None, None) else slice_memory(model, memory, *span)
    answers: list[Answer] = []
    for question in questions:
        asking = ask(model, asked, question, longest)
        if not arguments.json and len(questions) > 1:
            print(f"{question} ", end="", flush=True)
        for piece in asking:
            if not arguments.json:
                print(piece, end="", flush=True)
        answers.append(asking.answer)
        if not arguments.json:
            where = asking.answer.evidence[:1]
            print("".join(f"  [{clock(e.start)}-{clock(e.end)}]" for e in where))
        if asking.answer.finish_reason == "length" and not arguments.json:
            print(f"This answer was cut at {longest} tokens; --max-tokens allows more.", file=sys.stderr)
    for warning in dict.fromkeys(w for a in answers for w in a.warnings):
        print(warning, file=sys.stderr)
    if arguments.json:
        print(json.dumps(answer_document(arguments.recording, model, memory, listen_seconds, answers), indent=2))


def run_transcribe(arguments: argparse.Namespace) -> None:
    span, output = parse_span(arguments), arguments.output
    kind = arguments.format or (output.suffix[1:].lower() if output and output.suffix[1:].lower() in FORMATS else "txt")
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise OutputError(f"{output} is no file in a folder that exists; give another name.")
    model = load_model(arguments)
    memory, _ = get_memory(model, arguments, span)
    segments = transcribe(model, memory, *span)
    if kind == "json":
        document = transcript_document(arguments.recording, model, memory, segments)
        lines = iter([json.dumps(document, indent=2)])
    else:
        lines = text_lines(segments, kind)
    if output is not None:
        text = "".join(f"{line}\n" for line in lines)
        with whole_file(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    for line in lines:
        print(line, flush=True)


def run_listen(arguments: argparse.Namespace) -> None:
    if arguments.recording.is_dir():  # said before a name for the memory is made of it
        raise RecordingError(f"{arguments.recording} is a folder. Name one recording in it.")
    output = arguments.output or arguments.recording.with_suffix(".sxl")
    if output.suffix.lower() != ".sxl":
        raise OutputError(f"{output} must end in .sxl, so that `ask` knows it for a memory.")
    if not output.parent.is_dir():
        raise OutputError(f"There is no folder {output.parent}; make it first.")
    model = load_model(arguments)
    memory, _ = hear(model, arguments)
    for warning in memory.warnings:
        print(warning, file=sys.stderr)
    save_memory(memory, output, model)
    print(f"{output}: {clock(memory.seconds)} heard, {memory.slots} slots, {format_bytes(memory.bytes)}")


def run_info(arguments: argparse.Namespace) -> None:
    print("\n".join(f"{name}: {value}" for name, value in describe(arguments.path)))


def run_doctor(arguments: argparse.Namespace) -> None:
    found = []
    for finding in examine(arguments.model, arguments.backend):
        print(f"{finding.subject}: {finding.text}", flush=True)
        if finding.advice:
            print(f"  -> {finding.advice}", flush=True)
            found.append(finding.subject)
    if found:
        raise BackendError(f"Look at {', '.join(found)}: what to do stands above.")
    print("All is well.")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m speech_xl", description="Ask recordings of any length.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add_model(command: argparse.ArgumentParser) -> None:
        command.add_argument("--model", help="small, nano, a checkpoint folder or a Hub id (default: small, else nano)")
        command.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
        command.add_argument("--ratio", help="speech tokens per memory slot: raw, 2, 4, 8, 16")
        command.add_argument("--summarizer", default="auto", choices=("auto", *SUMMARIZERS))
        command.add_argument("--memory-budget", metavar="BYTES", help="take the smallest ratio that fits, e.g. 64MiB")
        command.add_argument(
            "--memory-bits", type=int, default=16, choices=MEMORY_BITS,
            help="quantize the memory's keys and values to 8 or 4 bits (default 16: as the model computes)",
        )  # fmt: skip

    def add_span(command: argparse.ArgumentParser) -> None:
        command.add_argument("--from", dest="start", metavar="T", help="this span alone: seconds, M:SS or H:MM:SS")
        command.add_argument("--to", dest="end", metavar="T")

    asking = commands.add_parser("ask", help="answer questions about a recording or a memory (.sxl)")
    asking.add_argument("recording", type=Path)
    asking.add_argument("question", nargs="*")
    asking.add_argument("--questions", type=Path, metavar="FILE", help="one question a line, or JSON lines")
    asking.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    asking.add_argument(
        "--max-tokens", default=str(LONGEST_ANSWER), metavar="N", help=f"of one answer (default {LONGEST_ANSWER})"
    )
    add_span(asking)
    add_model(asking)
    asking.set_defaults(run=run_ask)

    transcribing = commands.add_parser("transcribe", help="write down what a recording or a memory (.sxl) says")
    transcribing.add_argument("recording", type=Path)
    transcribing.add_argument("--format", choices=FORMATS, help="default: by the output's name, else txt")
    transcribing.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: print it")
    add_span(transcribing)
    add_model(transcribing)
    transcribing.set_defaults(run=run_transcribe)

    listening = commands.add_parser("listen", help="hear a recording once and keep its memory")
    listening.add_argument("recording", type=Path)
    listening.add_argument("-o", "--output", type=Path, help="default: the recording's name with .sxl")
    add_model(listening)
    listening.set_defaults(run=run_listen)

    info = commands.add_parser("info", help="describe a recording, a memory or a checkpoint")
    info.add_argument("path", type=Path)
    info.set_defaults(run=run_info)

    doctor = commands.add_parser("doctor", help="check this machine: backends, numbers, speed on the shipped example")
    doctor.add_argument("--model", help="small, nano, a checkpoint folder or a Hub id (default: small, else nano)")
    doctor.add_argument("--backend", default="auto", choices=("auto", *BACKENDS))
    doctor.set_defaults(run=run_doctor)
    commands.add_parser("serve", help="answer programs over HTTP, as OpenAI's API does")  # its flags are server/command.py's
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["serve"]:
        from server.command import main as serve  # a web framework, for this command alone

        return serve(arguments[1:])
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command == "ask":  # argparse does not take up positional arguments again behind an option
        parsed.question += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        parsed.run(parsed)
        sys.stdout.flush()  # here, where a closed pipe is still caught
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
        print(f"{error.filename or 'A file'}: {error.strerror or error}; name another one.", file=sys.stderr)
        return 2
    return 0
