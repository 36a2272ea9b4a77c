"""Hear every recording once a method, ask everything about it, and keep each answer as it comes.

It takes up a run where it was stopped. It knows the core's conversation and the scores; no tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.cascade import read_as_text, recognize, words_between
from evaluation.data import Data, DataError, Item
from evaluation.metrics import score_answer, score_transcript
from evaluation.results import CASCADE, RAW, Method, Result, ResultsFile
from speech_xl.conversation import Listening, ask
from speech_xl.decoders import SoundSource
from speech_xl.errors import QuestionError
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.recognition import Word
from speech_xl.schedule import Ratio, check_ratio
from speech_xl.summarizers import SUMMARIZERS, choose_summarizer
from speech_xl.transcript import transcribe

EVERY = "all"  # in a list of summarizers: each one that the model can use


@dataclass(frozen=True)
class Heard:
    """What a method keeps of a recording."""

    memory: AudioMemory
    listen_seconds: float  # what it took to make it
    words: tuple[Word, ...] | None = None  # the cascade's own transcript


def choose_methods(model: SpeechModel, ratios: Sequence[Ratio], summarizers: Sequence[str]) -> list[Method]:
    """Raw, if asked for, once and first; then every summarizer at every ratio.

    ScheduleError for a ratio or a summarizer that the model does not have.
    """
    if EVERY in summarizers:
        trained = model.config.sst is not None and model.config.sst.trained
        summarizers = [name for name, each in SUMMARIZERS.items() if trained or not each.needs_training]
    methods: dict[Method, None] = {}
    for name in summarizers:
        summarizer, _ = choose_summarizer(name, model.config)
        for ratio in ratios:
            check_ratio(ratio, model.interval, model.ratios)
            methods[RAW if ratio is None or summarizer.name == RAW.name else Method(summarizer.name, ratio)] = None
    return sorted(methods, key=lambda method: method != RAW)


def check_questions(model: SpeechModel, data: Data) -> None:
    """DataError, before anything is heard, for a question that the model's prompt does not take."""
    for item in data.items:
        if item.question is not None:
            try:
                model.prompt.question_ids(item.prompt)
            except QuestionError as error:
                raise DataError(f"The line with the id {item.id!r} cannot be asked: {error}") from None


def evaluate(
    model: SpeechModel, data: Data, methods: Sequence[Method], results: ResultsFile
) -> Iterator[tuple[Method, Item]]:
    """Answer what `results` has not yet; yields after each item, those of an earlier run included.

    A recording of which nothing is left to ask is not heard.
    """
    for method in methods:
        for audio, items in data.recordings().items():
            left = [item for item in items if not results.has(method, item.id)]
            yield from ((method, item) for item in items if results.has(method, item.id))
            if not left:
                continue
            heard = hear(model, audio, method)
            for item in left:
                results.add(answer(model, heard, item, method))
                yield method, item


def hear(model: SpeechModel, audio: Path | SoundSource, method: Method) -> Heard:
    """Make of a recording what the method keeps."""
    started = time.monotonic()
    if method == CASCADE:
        words, recording = recognize(model, audio)
        return Heard(read_as_text(model, words, recording), time.monotonic() - started, tuple(words))
    listening = Listening(model, audio, ratio=method.ratio, summarizer=method.name)
    for _ in listening:
        pass
    return Heard(listening.memory, time.monotonic() - started)


def ask_item(model: SpeechModel, heard: Heard, item: Item) -> tuple[str, tuple[float, float] | None]:
    """-> (what the model says, seconds of the strongest evidence; None for a transcript, or where there is none)."""
    if item.text is not None:
        if heard.words is not None:
            return words_between(heard.words, item.span), None
        segments = transcribe(model, heard.memory, *(item.span or (None, None)))
        return " ".join(segment.text for segment in segments), None
    asking = ask(model, heard.memory, item.prompt)
    for _ in asking:
        pass
    strongest = next(iter(asking.answer.evidence), None)
    return asking.answer.answer, None if strongest is None else (strongest.start, strongest.end)


def answer(model: SpeechModel, heard: Heard, item: Item, method: Method) -> Result:
    """Ask one item about a recording and score what comes."""
    started = time.monotonic()
    said, evidence = ask_item(model, heard, item)
    answer_seconds = time.monotonic() - started
    if item.text is not None:
        scores = score_transcript(said, item.text)
    else:
        span = None if method == CASCADE else item.span  # a text has no seconds to be right about
        scores = score_answer(said, item.answer or "", item.choices, span, evidence, item.letters)
    return Result(
        method=method,
        id=item.id,
        audio=item.audio.name,
        kind=item.kind,
        said=said,
        scores=scores,
        evidence=evidence,
        seconds=heard.memory.seconds,
        bytes=heard.memory.bytes,
        listen_seconds=round(heard.listen_seconds, 3),
        answer_seconds=round(answer_seconds, 3),
        line=item.line,
        sound=heard.memory.recording.sha256,
    )
