"""Questions about one memory at once: one batch, the answers of one at a time, and an end to each that is its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from speech_xl.asking import Answer
from speech_xl.conversation import Listening, ask
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.sampling import Sampling
from tests.serving import wait_until

QUESTIONS = ["what drink is order 4?", "a b?", "what size is order 47, and the one behind it?", "not mentioned?"]


@pytest.fixture
def model(tiny_checkpoint: Path) -> SpeechModel:
    return SpeechModel.load(str(tiny_checkpoint), "torch")


@pytest.fixture
def memory(model: SpeechModel, recording: Path) -> AudioMemory:
    listening = Listening(model, recording)
    list(listening)
    return listening.memory


@pytest.fixture
def batches(model: SpeechModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each batch of the model has had."""
    sizes: list[int] = []
    together = model.backend.answer_together

    def noted(state: object, texts: list, *rest: object) -> Iterator:
        sizes.append(len(texts))
        return together(state, texts, *rest)

    monkeypatch.setattr(model.backend, "answer_together", noted)
    return sizes


def answered(model: SpeechModel, memory: AudioMemory, question: str, longest: int = 12, **how: object) -> Answer:
    asking = ask(model, memory, question, longest, **how)
    assert "".join(asking) == asking.answer.answer
    return asking.answer


def waiting(model: SpeechModel) -> int:
    """How many texts are in batches that have not begun."""
    return sum(len(batch._taken) for batch in model.together._open.values())


def test_what_is_asked_at_once_is_answered_in_one_batch(
    model: SpeechModel, memory: AudioMemory, batches: list[int]
) -> None:
    alone = [answered(model, memory, question, 5 + n) for n, question in enumerate(QUESTIONS)]
    assert not batches and model.together._open == {}
    with ThreadPoolExecutor(4) as pool:
        with model.lock:  # the model is busy
            asked = [pool.submit(answered, model, memory, q, 5 + n) for n, q in enumerate(QUESTIONS)]
            wait_until(lambda: waiting(model) == 4)
        said = [a.result() for a in asked]
    assert batches == [4] and model.together._open == {}
    assert [a.answer for a in said] == [a.answer for a in alone] and [a.tokens for a in said] == [
        a.tokens for a in alone
    ]
    for one, other in zip(alone, said, strict=True):
        assert [e.start for e in one.evidence] == [e.start for e in other.evidence]


def test_each_asker_leaves_when_it_likes(model: SpeechModel, memory: AudioMemory, batches: list[int]) -> None:
    alone = answered(model, memory, QUESTIONS[0])
    steps = [model.together.answer(memory, model.prompt.question_ids(q)) for q in QUESTIONS[:3]]
    with ThreadPoolExecutor(3) as pool, model.lock:
        first = [pool.submit(next, s) for s in steps]
        wait_until(lambda: waiting(model) == 3)
    assert all(f.result() for f in first) and batches == [3]
    steps[1].close()
    rest = [step.token for step in itertools.islice(steps[0], 3)]
    steps[2].close()
    rest += [step.token for step in itertools.islice(steps[0], 3)]
    steps[0].close()
    said = [first[0].result().token, *rest]
    ends = [n for n, token in enumerate(said) if token in model.prompt.end_ids]
    assert alone.answer.startswith(model.prompt.decode(said[: ends[0] if ends else None]))


def test_other_memories_and_drawn_answers_stay_apart(
    model: SpeechModel, memory: AudioMemory, recording: Path, batches: list[int]
) -> None:
    listening = Listening(model, recording, None)
    list(listening)
    how = [{}, {}, {"sampling": Sampling(1.5, seed=1)}, {"start": 0.0, "end": 1.0}]
    memories = [memory, listening.memory, memory, memory]
    alone = [answered(model, m, QUESTIONS[0], **h) for m, h in zip(memories, how, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(answered, model, m, QUESTIONS[0], **h) for m, h in zip(memories, how, strict=True)]
        assert [a.result().answer for a in asked] == [a.answer for a in alone]
    assert batches == []


def test_what_fails_fails_for_everybody_and_nobody_later(
    model: SpeechModel, memory: AudioMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator:
        raise MemoryError("no room")
        yield

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(model.backend, "answer_together", broken)
        with model.lock:
            asked = [pool.submit(answered, model, memory, q) for q in QUESTIONS[:2]]
            wait_until(lambda: waiting(model) == 2)
        for a in asked:
            with pytest.raises(MemoryError, match="no room"):
                a.result()
    assert model.together._open == {} and answered(model, memory, QUESTIONS[0]).answer is not None
