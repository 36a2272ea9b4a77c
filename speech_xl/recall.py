"""Words that a memory still holds: each interval's own, said from its slots, and an answer read from such words.

A slot says its words more surely than it answers questions, and words of intervals that did not see each other are
understood less well than a text. So a checkpoint may recall before it answers: the intervals that the question is about
are said again as words, and these are read as one text. Only the memory is used: what its slots have lost is not
recalled. A question that names a number is read beside the words where the number was said, spelled as it was said
there; where numbers are called out ("Six two. The ferry to the islands."), what they announce is all that is read. This
file knows intervals, slots and token ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from speech_xl.memory import AudioMemory
from speech_xl.schedule import FixedRatio, Scheduler
from speech_xl.slices import overlapping
from speech_xl.spoken_numbers import as_heard, asked_numbers
from speech_xl.summarizers import SSTs
from speech_xl.word_search import announced, holders, relevance

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel
    from speech_xl.prompt import Prompt

INTERVALS_AT_ONCE = 24  # nearly as fast as 8, as weights are read once for all; more would delay the first words
SEARCHED = 4  # times as many intervals as a checkpoint recalls to answer may be recalled to find these
# Intervals that are read with one that holds a number: what it is about stands behind it, mostly.
BESIDE = (-1, 0, 1, 2)
WORDS_PER_SPEECH_TOKEN = 2  # text tokens, where speech tokens are sound; an interval that says more is lost in a loop


@dataclass(frozen=True)
class Interval:
    """An interval of a memory: where its slots and its words are."""

    number: int
    slots: tuple[int, int]  # [first, past the last), the prefix not counted
    tokens: tuple[int, int]  # speech tokens that they stand for, likewise
    start: float  # seconds
    end: float


def intervals_between(memory: AudioMemory, start: float, end: float) -> list[Interval]:
    """The intervals that overlap [start, end] seconds, each with its own slots."""
    number = memory.slot_intervals
    first = np.flatnonzero(np.diff(number, prepend=-1))
    stop = np.append(first[1:], len(number))[: len(first)]
    tokens = np.stack([memory.spans[first, 0], memory.spans[stop - 1, 1]], axis=1)
    times = np.stack([memory.times[tokens[:, 0], 0], memory.times[tokens[:, 1] - 1, 1]], axis=1)
    return [
        Interval(int(number[first[i]]), (int(first[i]), int(stop[i])), tuple(tokens[i].tolist()), *times[i].tolist())
        for i in overlapping(times, start, end).tolist()
    ]


def recalled_words(model: SpeechModel, memory: AudioMemory, intervals: Sequence[Interval]) -> Iterator[list[int]]:
    """Token ids of each interval's words, a batch of intervals at a time. What was recalled once is kept."""
    prompt, prefix = model.prompt, len(memory.prefix)
    per_token = WORDS_PER_SPEECH_TOKEN if model.config.recognizer is None else 1  # there, words are what was heard
    for at, wanted in enumerate(intervals):
        if wanted.tokens not in memory.recalled:
            missing = [i for i in intervals[at:] if i.tokens not in memory.recalled][:INTERVALS_AT_ONCE]
            limits = [per_token * (i.tokens[1] - i.tokens[0]) for i in missing]
            with model.lock:
                said = model.backend.answer_spans(
                    memory.state, prefix, [i.slots for i in missing], prompt.transcribe_ids, prompt.end_ids, max(limits)
                )
            for interval, ids, limit in zip(missing, said, limits, strict=True):
                memory.recalled[interval.tokens] = ids[:limit]
        yield memory.recalled[wanted.tokens]


def can_recall(model: SpeechModel, memory: AudioMemory) -> bool:
    """Whether questions about a memory are answered from recalled words."""
    untrained = memory.summarizer != SSTs.name and any(ratio is not None for ratio in memory.ratios)
    return bool(model.config.sst and model.config.sst.recall) and memory.text_position is None and not untrained


def recall(
    model: SpeechModel, memory: AudioMemory, question: str, span: tuple[float, float]
) -> tuple[AudioMemory, str]:
    """A memory of the words of those intervals in a span of seconds that a question is about, and the question to put to it.

    It holds them raw, in their order, as one interval in which every word sees those before it, each with its time. The
    question's figures are spelled as these words have them. `memory` itself and the question as it is if a rule without
    training compressed it, or the checkpoint does not recall.
    """
    if not can_recall(model, memory):
        return memory, question
    assert model.config.sst is not None
    most = model.config.sst.recall
    intervals = intervals_between(memory, *span)
    if len(intervals) > most or asked_numbers(question):
        intervals = choose(model, memory, question, intervals, most)
    ids: list[int] = []
    times = [np.zeros((0, 2), np.float32)]
    for interval, words in zip(intervals, recalled_words(model, memory, intervals), strict=True):
        first, stop = interval.tokens
        # As many words as were heard, as a rule; else they share the interval's time.
        place = first + np.arange(len(words)) * (stop - first) // max(1, len(words))
        kept = overlapping(memory.times[place], *span)
        ids += [words[i] for i in kept]
        times.append(memory.times[place[kept]])
    if not ids:
        return memory, question
    about = _called_out(model.prompt, question, ids)
    ids, heard = [ids[i] for i in about], np.concatenate(times)[about]
    question = as_heard(question, model.prompt.text(ids))
    read = (span, tuple(interval.number for interval in intervals), tuple(ids))
    with model.lock:
        recalled = memory.readings.get(read)
        if recalled is None:
            recalled = memory.readings[read] = _words_as_memory(model, memory, ids, heard)
    return recalled, question


def _words_as_memory(model: SpeechModel, memory: AudioMemory, ids: list[int], times: np.ndarray) -> AudioMemory:
    """A raw memory of words of `memory`, each with its seconds, times (words, 2). The caller holds the model's lock."""
    plan = Scheduler(len(ids), FixedRatio(None), len(memory.prefix), horizon=model.horizon).next(len(ids))
    state = model.backend.start(list(memory.prefix))
    model.backend.hear_words(state, ids)
    model.backend.close_intervals([(state, [plan])])
    place = np.arange(len(ids), dtype=np.int64)
    return dataclasses.replace(
        memory,
        state=state,
        spans=np.stack([place, place + 1], axis=1),
        times=times,
        ratios=(None,),
        interval=len(ids),
        bytes=model.backend.memory_bytes(state),
        recalled={},
        readings=WeakValueDictionary(),
    )


def _called_out(prompt: Prompt, question: str, ids: Sequence[int]) -> list[int]:
    """Which of some words' tokens to read: those that the question's numbers announce, if any were called out; else all."""
    places = announced(question, prompt.text(ids))
    if not places:
        return list(range(len(ids)))
    reach = [len(prompt.text(ids[:n])) for n in range(len(ids) + 1)]  # characters: a token may hold half of one
    kept = [i for i in range(len(ids)) if any(reach[i + 1] > start and reach[i] < stop for start, stop in places)]
    return kept or list(range(len(ids)))


def choose(
    model: SpeechModel, memory: AudioMemory, question: str, intervals: Sequence[Interval], most: int
) -> list[Interval]:
    """At most `most` intervals that a question is about, in their order.

    Those whose slots get most attention are recalled, up to SEARCHED times as many as are kept. If some of these hold the
    question's numbers, they are read, each with its neighbours, as sentences do not end where intervals do. Else those
    whose words have most in common with the question, and, where the words do not tell, those with more attention.
    """
    attention = attended(model, memory, question, intervals) if len(intervals) > most else np.zeros(len(intervals))
    near = np.sort(np.argsort(attention, kind="stable")[-SEARCHED * most :])
    intervals, attention = [intervals[i] for i in near], attention[near]
    texts = [model.prompt.text(words) for words in recalled_words(model, memory, intervals)]
    order = np.lexsort((attention, relevance(question, texts)))
    if named := set(holders(question, texts)):
        by_rank = [i for i in reversed(order.tolist()) if i in named][: max(1, most // len(BESIDE))]
        beside = [i + n for i in by_rank for n in BESIDE if 0 <= i + n < len(intervals)]
        return [intervals[i] for i in sorted(set(beside))]
    return [intervals[i] for i in sorted(order[-most:].tolist())]


def attended(model: SpeechModel, memory: AudioMemory, question: str, intervals: Sequence[Interval]) -> np.ndarray:
    """(n,) float: the share of attention that each interval's slots get before the answer's first token."""
    steps = model.backend.answer(memory.state, model.prompt.question_ids(question), memory.position)
    try:
        with model.lock:
            weights = next(steps).slot_weights[len(memory.prefix) :]
    finally:
        steps.close()
    return np.array([weights[slice(*interval.slots)].sum() for interval in intervals])
