"""`speech-xl ask`: answers to questions about a recording or a memory, with the seconds they come from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from speech_xl.arguments import parse_tokens, read_questions
from speech_xl.asking import Answer
from speech_xl.clock import clock
from speech_xl.commands.options import add_longest, add_memory, add_model, add_span, get_memory, load_model, parse_span
from speech_xl.conversation import ask, ask_together
from speech_xl.documents import answer_document
from speech_xl.errors import QuestionError
from speech_xl.memory import AudioMemory
from speech_xl.plain_text import harmless, one_line


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog=prog, description="Answer questions about a recording or a memory (.sxl).")
    parser.add_argument("recording", type=Path)
    parser.add_argument("question", nargs="*")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="one question per line, or JSON lines")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    add_longest(parser)
    add_span(parser)
    add_model(parser)
    add_memory(parser)
    return parser


def parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """argparse does not take up positional arguments again behind an option; a question may stand there."""
    parsed, rest = parser.parse_known_args(words)
    parsed.question += [word for word in rest if not word.startswith("-")]
    if options := [word for word in rest if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    return parsed


def main(words: list[str], prog: str) -> int:
    """Run the command -> its exit code."""
    arguments = parse(build_parser(prog), words)
    questions = list(arguments.question)
    if arguments.questions is not None:
        questions += read_questions(arguments.questions)
    if not questions:
        raise QuestionError("There is no question; write it after the recording or give --questions FILE.")
    span, longest = parse_span(arguments), parse_tokens(arguments.max_tokens)
    model = load_model(arguments)
    for question in questions:
        model.prompt.question_ids(question)  # a question that cannot be asked is said before an hour is heard
    memory, listen_seconds = get_memory(model, arguments.recording, arguments, span)
    answers: list[Answer] = []
    if len(questions) == 1 and not arguments.json:
        asking = ask(model, memory, questions[0], longest, *span)
        for piece in asking:
            print(harmless(piece), end="", flush=True)
        answers.append(asking.answer)
        print_rest(memory, asking.answer, longest)
    else:
        for answer in ask_together(model, memory, questions, longest, *span):
            answers.append(answer)
            if not arguments.json:
                print(f"{one_line(answer.question)} {harmless(answer.answer)}", end="")
                print_rest(memory, answer, longest)
    for warning in dict.fromkeys(w for a in answers for w in a.warnings):
        print(one_line(warning), file=sys.stderr)
    if arguments.json:
        print(json.dumps(answer_document(arguments.recording, model, memory, listen_seconds, answers), indent=2))
    return 0


def print_rest(memory: AudioMemory, answer: Answer, longest: int) -> None:
    """Behind an answer: where it comes from, and whether it was cut."""
    for evidence in answer.evidence[:1]:
        recording, start = memory.part_at(evidence.start)
        name = f"{one_line(recording.path)} " if memory.parts else ""
        print(f"  [{name}{clock(start)}-{clock(start + evidence.end - evidence.start)}]", end="")
    print(flush=True)
    if answer.finish_reason == "length":
        print(f"This answer was cut at {longest} tokens; --max-tokens allows more.", file=sys.stderr)
