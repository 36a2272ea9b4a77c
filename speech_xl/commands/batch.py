"""`speech-xl batch`: hear and ask many recordings, and go on where it was stopped."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from speech_xl.arguments import parse_tokens, read_questions
from speech_xl.batch.on_ray import Cluster, work_on_ray
from speech_xl.batch.parquet import TABLE, check_parquet, write_parquet
from speech_xl.batch.plan import in_order, make_jobs, questions_of
from speech_xl.batch.recordings import Recording, find_recordings
from speech_xl.batch.results import ANSWER, MEMORY, RESULTS, SKIPPED, TRANSCRIPT, Key, Results
from speech_xl.batch.search import search, terms_of
from speech_xl.batch.settings import Settings, find_model
from speech_xl.batch.work import Done, Event, Progress, work_here
from speech_xl.clock import clock
from speech_xl.commands.options import add_longest, add_memory, add_model, parse_memory
from speech_xl.errors import QuestionError, RecordingError, ScheduleError
from speech_xl.model import check_choice
from speech_xl.plain_text import one_line
from speech_xl.prompt import Prompt
from speech_xl.summarizers import choose_summarizer
from speech_xl.whole_file import whole_file

CORPUS = "corpus.jsonl"
ADDRESS = re.compile(r"auto|local|(ray://)?[^/\s]+:[0-9]+")  # of a Ray; other words behind --ray are INPUT
ABOUT_RECORDINGS = re.compile(r"(which|what|how many|do any) (of the )?(recordings|files)\b", re.IGNORECASE)
AT_ONCE = 4  # more are hardly faster on a processor, and take more memory
SPANS_SHOWN = 3  # of each recording that a question about the corpus finds; the file has all


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The command's flags."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Hear and ask many recordings; run the same command again to continue."
    )
    parser.add_argument("input", nargs="+", help="folders, globs, recordings, or .jsonl lists of recordings")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="for results.jsonl and memories")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="questions for every recording, one per line")
    parser.add_argument(
        "--corpus-questions",
        type=Path,
        metavar="FILE",
        help="questions about all recordings together, such as: which recordings mention a bridge?",
    )
    parser.add_argument("--transcribe", action="store_true", help="transcribe every recording")
    parser.add_argument("--parquet", action="store_true", help=f"also write the results as a table: {TABLE}")
    add_longest(parser)
    add_model(parser)
    add_memory(parser)
    parser.add_argument(
        "--at-once",
        type=int,
        default=AT_ONCE,
        metavar="N",
        help=f"recordings that are heard as one batch (default: {AT_ONCE})",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on Ray: at HOST:PORT, auto or local (default: RAY_ADDRESS, else a local cluster)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="Ray actors (default: as many as fit)")
    parser.add_argument("--num-gpus", type=float, metavar="N", help="GPUs of each Ray actor (default: none)")
    return parser


def without_guess(words: Sequence[str]) -> list[str]:
    """The command's words; a `--ray` before a word that is no address of a Ray takes none, so that the word is INPUT."""
    taken = list(words)
    for at, (word, following) in enumerate(pairwise(words)):
        if word == "--ray" and not ADDRESS.fullmatch(following):
            taken[at] = "--ray="
    return taken


def parse_cluster(arguments: argparse.Namespace) -> Cluster | None:
    """Ray's settings from the flags; None without --ray. ScheduleError for an address or numbers that cannot be."""
    if arguments.ray is None:
        if arguments.workers is not None or arguments.num_gpus is not None:
            raise ScheduleError("--workers and --num-gpus are for Ray; add --ray, or leave them out.")
        return None
    if arguments.workers is not None and arguments.workers < 1:
        raise ScheduleError(f"{arguments.workers} workers do nothing; give one or more.")
    if arguments.num_gpus is not None and not 0 <= arguments.num_gpus < 1000:
        raise ScheduleError(f"A worker cannot have {arguments.num_gpus:g} GPUs; give a number such as 1.")
    cluster = Cluster(arguments.ray, arguments.workers, arguments.num_gpus or 0.0)
    if not ADDRESS.fullmatch(cluster.place) or cluster.place.startswith("ray://"):
        raise ScheduleError(
            f"{cluster.place} is no address that a batch can join; give the HOST:PORT of a Ray's head, on a machine of its "
            "cluster, or --ray alone."
        )
    return cluster


def find_settings(arguments: argparse.Namespace) -> tuple[Settings, Prompt]:
    """What the batch is made with; refused here is what no recording can be heard with."""
    max_tokens, (ratio, budget) = parse_tokens(arguments.max_tokens), parse_memory(arguments)
    model, prompt, note = find_model(arguments.model)
    if note:
        print(note, file=sys.stderr)
    check_choice(model.config, ratio, budget)
    choose_summarizer(arguments.summarizer, model.config)
    settings = Settings(
        model=model,
        backend=arguments.backend,
        ratio=ratio,
        memory_budget=budget,
        summarizer=arguments.summarizer,
        memory_bits=arguments.memory_bits,
        max_tokens=max_tokens,
    )
    return settings, prompt


def check_questions(prompt: Prompt, recordings: Iterable[Recording], questions: Sequence[str]) -> None:
    """QuestionError, before anything is heard, for a question that the model cannot be asked."""
    for question in questions:
        prompt.question_ids(question)
    for recording in recordings:
        for question in recording.questions:
            try:
                prompt.question_ids(question)
            except QuestionError as error:
                raise QuestionError(f"A question of {recording.name} cannot be asked. {error}") from None


def keep(events: Generator[Event, None, None], results: Results, total: int, left: int) -> None:
    """Put lines into the results as they come, with a progress bar on stderr."""
    heard: dict[str, float] = {}  # seconds of those that are in work
    seconds, skipped, started = 0.0, 0, time.monotonic()
    layout = "{n_fmt}/{total_fmt} recordings |{bar}| {elapsed}{postfix}"
    with closing(events), tqdm(total=total, initial=total - left, bar_format=layout, file=sys.stderr) as bar:
        for event in events:
            if isinstance(event, Progress):
                seconds += event.seconds - heard.get(event.name, 0.0)
                heard[event.name] = event.seconds
            elif isinstance(event, Done):
                heard.pop(event.name, None)
                bar.update()
            else:
                results.add(event)
                for line in (line for line in event if line["kind"] == SKIPPED):
                    skipped += 1
                    tqdm.write(f"skipped {one_line(line['recording'])}: {one_line(line['reason'])}", file=sys.stderr)
            speed = seconds / max(1e-9, time.monotonic() - started)
            bar.set_postfix_str(f"{clock(seconds)} heard, {speed:.0f}x real time, {skipped} skipped", refresh=False)


def search_corpus(results: Results, recordings: Sequence[Recording], questions: Sequence[str]) -> None:
    """Answer questions about the corpus: all of it in corpus.jsonl, the best of it on stdout."""
    transcripts = results.lines((recording.name, TRANSCRIPT, "") for recording in recordings)
    path = results.folder / CORPUS
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for found in search(transcripts, questions):
            file.write(json.dumps(found) + "\n")
            print(one_line(found["question"]), *map(describe, found["recordings"]), sep="\n  ")
    print(one_line(f"{path}: {len(questions)} questions"))


def describe(found: dict[str, Any]) -> str:
    """A recording that was found, with its first spans, as a line of text."""
    spans = [f"[{clock(span['start'])}-{clock(span['end'])}]" for span in found["spans"]]
    more = len(spans) - SPANS_SHOWN
    return " ".join([one_line(found["recording"]), *spans[:SPANS_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def report(results: Results, recordings: Sequence[Recording], questions: Sequence[str]) -> None:
    """What there is now. RecordingError if it is nothing."""

    def count(keys: Iterable[Key]) -> int:
        return sum(map(results.has, keys))

    heard = count((r.name, MEMORY, "") for r in recordings)
    skipped = count((r.name, SKIPPED, "") for r in recordings)
    answers = count((r.name, ANSWER, question) for r in recordings for question in questions_of(r, questions))
    if not heard:
        raise RecordingError("None of the recordings could be heard; the reasons are above.")
    path = results.folder / RESULTS
    done = f"{heard} of {len(recordings)} recordings heard, {answers} answers, {skipped} skipped"
    print(one_line(f"{path}: {done}"))


def run(arguments: argparse.Namespace) -> None:
    """Do what the flags say; SpeechXLError in one sentence if that cannot be."""
    cluster = parse_cluster(arguments)
    if arguments.at_once < 1:
        raise ScheduleError(f"{arguments.at_once} recordings at once are none; give --at-once 1 or more.")
    if arguments.parquet:
        check_parquet()
    questions = [] if arguments.questions is None else read_questions(arguments.questions)
    of_corpus = [] if arguments.corpus_questions is None else read_questions(arguments.corpus_questions)
    for question in of_corpus:
        terms_of(question)
    for question in filter(ABOUT_RECORDINGS.match, questions):
        print(
            f"{one_line(question)} is asked of one recording at a time; --corpus-questions searches all.",
            file=sys.stderr,
        )
    output = Path(arguments.output).absolute()
    recordings = find_recordings(arguments.input, output)
    settings, prompt = find_settings(arguments)
    check_questions(prompt, recordings, questions)
    with Results(output, settings.kept()) as results:
        jobs = make_jobs(recordings, questions, arguments.transcribe or bool(of_corpus), results)
        if jobs:
            if cluster is None:
                events = work_here(settings, jobs, arguments.at_once)
            else:
                events = work_on_ray(settings, jobs, arguments.at_once, cluster)
            keep(events, results, len(recordings), len(jobs))
        results.arrange(in_order(recordings, questions))
        if arguments.parquet:
            write_parquet(results.lines(results.all_keys()), output / TABLE)
        report(results, recordings, questions)
        if of_corpus:
            search_corpus(results, recordings, of_corpus)


def main(words: list[str], prog: str) -> int:
    """Run the command -> its exit code; 130 if it was stopped."""
    arguments = build_parser(prog).parse_args(without_guess(words))
    try:
        run(arguments)
    except KeyboardInterrupt:
        print("Stopped: what is done is kept; run the same command again to continue.", file=sys.stderr)
        return 130
    return 0
