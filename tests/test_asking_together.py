"""Several questions in one batch: the answers that each gets alone, and no question asked before all can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech_xl import asking as module
from speech_xl.asking import Answer
from speech_xl.backend import BACKENDS, is_installed
from speech_xl.conversation import Listening, ask, ask_together
from speech_xl.errors import QuestionError
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel

QUESTIONS = ["what drink is order 4?", "a?", "not mentioned", "a b c d e f g h?", "a?"]


@pytest.fixture(scope="module", params=[name for name in BACKENDS if is_installed(name)])
def heard(request: pytest.FixtureRequest, tiny_checkpoint: Path, recording: Path) -> tuple[SpeechModel, AudioMemory]:
    model = SpeechModel.load(str(tiny_checkpoint), request.param)
    listening = Listening(model, recording, 4)
    list(listening)
    return model, listening.memory


def alone(model: SpeechModel, memory: AudioMemory, question: str, longest: int, **more) -> Answer:
    asking = ask(model, memory, question, longest, **more)
    assert "".join(asking) == asking.answer.answer
    return asking.answer


def same(one: Answer, other: Answer) -> bool:
    """All but the time it took; weights of evidence are rounded to four places."""
    apart = max((abs(a.weight - b.weight) for a, b in zip(one.evidence, other.evidence, strict=True)), default=0)
    fields = ("question", "answer", "tokens", "finish_reason", "warnings", "heard_seconds")
    return apart < 2e-4 and all(getattr(one, name) == getattr(other, name) for name in fields)


@pytest.mark.parametrize(("longest", "more"), [(12, {}), (3, {"start": 1.0, "end": 4.0}), (9, {"stop": ["e"]})])
def test_each_answer_is_the_one_that_it_gets_alone(
    heard, monkeypatch: pytest.MonkeyPatch, longest: int, more: dict
) -> None:
    model, memory = heard
    monkeypatch.setattr(module, "QUESTIONS_AT_ONCE", 3)
    batches, together = [], model.backend.answer_together
    monkeypatch.setattr(
        model.backend,
        "answer_together",
        lambda state, texts, *rest: batches.append(len(texts)) or together(state, texts, *rest),
    )
    found = list(ask_together(model, memory, QUESTIONS, longest, **more))
    assert batches == [3, 2]
    for answer, question in zip(found, QUESTIONS, strict=True):
        assert same(answer, alone(model, memory, question, longest, **more))


def test_a_question_that_cannot_be_asked_is_said_before_any_is_answered(heard, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = heard
    monkeypatch.setattr(model.backend, "answer_together", None)
    with pytest.raises(QuestionError, match="empty"):
        ask_together(model, memory, ["a?", " "])
    assert list(ask_together(model, memory, [])) == []
