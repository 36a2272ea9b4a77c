"""Words recalled from compressed slots, and answers read from them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speech_xl.config import SAMPLING_RATE
from speech_xl.config_check import check
from speech_xl.conversation import Listening, ask
from speech_xl.errors import CheckpointError, QuestionError
from speech_xl.joining import join_memories
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.recall import choose, intervals_between, recall, recalled_words
from speech_xl.transcript import transcribe
from tests.tiny import save_checkpoint, sound, tiny_config, tiny_recognizer_config

QUESTION = "what is said?"


def with_recall(most: int):
    config = tiny_recognizer_config()
    return dataclasses.replace(config, sst=dataclasses.replace(config.sst, recall=most))


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    folder = save_checkpoint(tmp_path_factory.mktemp("recall") / "tiny", with_recall(2), seed=1)
    return SpeechModel.load(str(folder), request.param)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "talk.wav"
    sf.write(path, sound(12, 5), SAMPLING_RATE, subtype="FLOAT")
    return path


def heard(model: SpeechModel, path: Path, ratio: int | None, **options: object) -> AudioMemory:
    listening = Listening(model, path, ratio, **options)
    list(listening)
    return listening.memory


@pytest.fixture
def memory(model: SpeechModel, path: Path) -> AudioMemory:
    return heard(model, path, 4)


def whole(memory: AudioMemory) -> tuple[float, float]:
    return 0.0, memory.seconds


def test_the_words_of_the_most_attended_intervals_are_read_raw(
    model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech_xl.recall.relevance", lambda question, texts: np.zeros(len(texts)))
    ids, backend, p = model.prompt.question_ids(QUESTION), model.backend, len(memory.prefix)
    intervals = intervals_between(memory, *whole(memory))
    assert len(intervals) == memory.intervals > 2
    step = next(backend.answer(memory.state, ids, memory.position))
    shares = [step.slot_weights[p + i.slots[0] : p + i.slots[1]].sum() for i in intervals]
    chosen = [intervals[n] for n in sorted(np.argsort(shares)[-2:])]
    assert choose(model, memory, QUESTION, intervals, 2) == chosen
    words = []
    for interval in chosen:
        n = interval.tokens[1] - interval.tokens[0]
        arguments = (memory.state, p, [interval.slots], model.prompt.transcribe_ids, model.prompt.end_ids, n)
        words.append(backend.answer_spans(*arguments)[0])
    assert list(recalled_words(model, memory, chosen)) == words
    recalled = recall(model, memory, QUESTION, whole(memory))[0]
    said = [i for part in words for i in part]
    assert recalled.tokens == len(recalled.spans) == recalled.interval == len(said) and recalled.ratios == (None,)
    inside = [(t >= i.start and t <= i.end) for i in chosen[:1] for t in recalled.times[: len(words[0])].flat]
    assert all(inside)
    assert backend.memory_bytes(recalled.state) == (p + len(said)) * model.bytes_per_slot
    asking = ask(model, memory, QUESTION, longest=6)
    list(asking)
    steps = itertools.islice(backend.answer(recalled.state, ids, recalled.position), 6)
    tokens = itertools.takewhile(lambda token: token not in model.prompt.end_ids, (step.token for step in steps))
    assert asking.answer.answer == model.prompt.decode(list(tokens))
    assert all(any(i.start - 0.01 <= e.start < i.end for i in chosen) for e in asking.answer.evidence)


def test_few_intervals_are_all_recalled_without_looking(
    model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.backend, "answer", None)
    first = intervals_between(memory, *whole(memory))[0]
    recalled = recall(model, memory, QUESTION, (first.start, first.end))[0]
    assert set(memory.recalled) >= {first.tokens}
    assert len(recalled.times) and recalled.times[:, 0].min() >= first.start - 0.01


def test_words_in_common_choose_before_attention(
    model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    intervals = intervals_between(memory, *whole(memory))
    monkeypatch.setattr("speech_xl.recall.relevance", lambda question, texts: np.arange(len(texts))[::-1])
    assert choose(model, memory, QUESTION, intervals, 2) == intervals[:2]


def test_a_number_is_read_where_it_was_said_as_it_was_said(
    model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own interval and the neighbours, though other intervals have more words in common with the question."""
    monkeypatch.setattr("speech_xl.recall.relevance", lambda question, texts: np.arange(len(texts))[::-1])
    intervals = intervals_between(memory, *whole(memory))
    words = [model.prompt.text_ids(f" word {n} and so on") for n in range(len(intervals))]
    words[-1] = model.prompt.text_ids(" it was Four, seven that")
    memory = dataclasses.replace(memory, recalled={i.tokens: ids for i, ids in zip(intervals, words, strict=True)})
    assert choose(model, memory, "what is order 47?", intervals, 3) == intervals[-2:]
    assert choose(model, memory, "what is order 48?", intervals, 3) == intervals[:3]
    asked = recall(model, memory, "what is order 47?", whole(memory))[1]
    assert asked == "what is order Four seven?"
    assert recall(model, memory, "what is order 48?", whole(memory))[1] == "what is order 48?"


def test_only_what_a_called_out_number_announces_is_read(model: SpeechModel, memory: AudioMemory) -> None:
    intervals = intervals_between(memory, *whole(memory))
    said = [" it is so. Two", " nine. Four seven. A small", " one for me. Four", " eight. A large one. And"]
    words = dict(zip((i.tokens for i in intervals), map(model.prompt.text_ids, said), strict=False))
    memory = dataclasses.replace(memory, recalled={i.tokens: words.get(i.tokens, []) for i in intervals})
    read, asked = recall(model, memory, "what is order 47?", whole(memory))
    ids = model.prompt.text_ids(" Four seven. A small one for me.")
    assert asked == "what is order Four seven?" and len(read.times) == read.tokens == len(ids)
    first = next(i for i in intervals if i.number == intervals[1].number)
    assert first.start <= read.times[0, 0] <= read.times[-1, 1] <= intervals[2].end


def test_words_are_recalled_once(model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = list(transcribe(model, memory))
    assert len(memory.recalled) == memory.intervals
    monkeypatch.setattr(model.backend, "answer_spans", None)
    assert list(transcribe(model, memory)) == segments
    assert recall(model, memory, QUESTION, whole(memory))[0] is not memory


def test_who_asks_meanwhile_reads_the_same_words(model: SpeechModel, memory: AudioMemory) -> None:
    span = (0.0, intervals_between(memory, *whole(memory))[1].end - 0.01)  # as many as are recalled, whatever is asked
    first = recall(model, memory, QUESTION, span)[0]
    assert recall(model, memory, "and what else?", span)[0] is first is not memory
    assert recall(model, memory, QUESTION, (span[0], span[1] / 2))[0] is not first
    del first
    assert not memory.readings


def test_a_span_recalls_nothing_outside(model: SpeechModel, memory: AudioMemory) -> None:
    start, end = 3.0, 6.0
    recalled = recall(model, memory, QUESTION, (start, end))[0]
    assert len(recalled.times) and (recalled.times[:, 1] > start).all() and (recalled.times[:, 0] < end).all()
    asking = ask(model, memory, QUESTION, longest=4, start=start, end=end)
    list(asking)
    assert all(e.end > start and e.start < end for e in asking.answer.evidence)
    with pytest.raises(QuestionError, match="outside"):
        ask(model, memory, QUESTION, start=100.0)


def test_nothing_is_recalled_where_nothing_is_gained(model: SpeechModel, memory: AudioMemory, path: Path) -> None:
    other = heard(model, path, 4, summarizer="stride")
    assert recall(model, other, QUESTION, whole(other)) == (other, QUESTION)


def test_recall_needs_words(tmp_path: Path) -> None:
    config = tiny_config()
    with pytest.raises(CheckpointError, match="needs a recognizer"):
        check(dataclasses.replace(config, sst=dataclasses.replace(config.sst, recall=2)))
    with pytest.raises(CheckpointError, match="whole number from 0"):
        check(with_recall(-1))


def test_words_recalled_while_listening_serve_what_comes_after_it(
    model: SpeechModel, memory: AudioMemory, path: Path
) -> None:
    """But not those of an interval that went on."""
    listening = Listening(model, path, 4)
    events = iter(listening)
    next(events)
    early = listening.snapshot()
    list(transcribe(model, early))
    open_interval = intervals_between(early, *whole(early))[-1]
    list(events)
    later = listening.memory
    assert {i.tokens for i in intervals_between(early, *whole(early))} <= set(later.recalled)
    assert open_interval.tokens not in {i.tokens for i in intervals_between(later, *whole(later))}
    assert list(transcribe(model, later)) == list(transcribe(model, memory))


def test_words_of_parts_serve_their_whole(
    model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sst = dataclasses.replace(model.config.sst, horizon=0)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, sst=sst))
    words = list(recalled_words(model, memory, intervals_between(memory, *whole(memory))))
    joined = join_memories(model, [memory, memory])
    monkeypatch.setattr(model.backend, "answer_spans", None)
    assert list(recalled_words(model, joined, intervals_between(joined, *whole(joined)))) == words * 2
