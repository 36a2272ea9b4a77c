"""Words are recalled before anybody asks, while nobody else needs the model, and are the same words."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile as sf

from speech_xl import recall_ahead
from speech_xl.config import SAMPLING_RATE
from speech_xl.conversation import Listening
from speech_xl.memory import AudioMemory
from speech_xl.model import SpeechModel
from speech_xl.recall import intervals_between, recalled_words
from tests.tiny import save_checkpoint, sound, tiny_config, tiny_recognizer_config

ENDLESS = """
import types
from speech_xl import recall_ahead
from speech_xl.fair_lock import FairLock

recall_ahead.can_recall = lambda model, memory: True
recall_ahead.intervals_between = lambda *_: [types.SimpleNamespace(tokens=(0, 1))]
recall_ahead.recalled_words = lambda *_: []  # never gets anywhere
class Memory:
    intervals, seconds, recalled = 1, 1.0, {}
memory = Memory()
recall_ahead.RecallAhead(types.SimpleNamespace(lock=FairLock())).add(memory)
"""


def load(folder: Path, recall: int, backend: str = "torch") -> SpeechModel:
    config = tiny_recognizer_config()
    config = dataclasses.replace(config, sst=dataclasses.replace(config.sst, recall=recall))
    return SpeechModel.load(str(save_checkpoint(folder / "tiny", config, seed=1)), backend)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "talk.wav"
    sf.write(path, sound(12, 5), SAMPLING_RATE, subtype="FLOAT")
    return path


def heard(model: SpeechModel, path: Path, ratio: int | None = 4) -> AudioMemory:
    listening = Listening(model, path, ratio)
    list(listening)
    return listening.memory


def recalling() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "speech-xl-recall"]


def wait() -> None:
    for thread in recalling():
        thread.join(60)
    assert not recalling()


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_all_intervals_are_recalled_as_a_question_would(
    tmp_path: Path, path: Path, backend: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall_ahead, "AT_ONCE", at_once)
    model = load(tmp_path, 2, backend)
    first, second, asked = (heard(model, path) for _ in range(3))
    intervals = intervals_between(asked, 0.0, asked.seconds)
    words = list(recalled_words(model, asked, intervals))
    assert len(words) > 2
    for memory in (first, second):
        model.ahead.add(memory)
    wait()
    for memory in (first, second):
        assert [memory.recalled[i.tokens] for i in intervals] == words


def test_nothing_is_recalled_while_somebody_needs_the_model(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path, 2)
    memory = heard(model, path)
    looks = itertools.count()
    has_looked_often = threading.Event()

    def pause(seconds: float) -> None:
        if next(looks) > 5:
            has_looked_often.set()

    monkeypatch.setattr(recall_ahead.time, "sleep", pause)
    with model.lock:
        model.ahead.add(memory)
        assert has_looked_often.wait(60)
        assert not memory.recalled
    wait()
    assert len(memory.recalled) == memory.intervals


def test_a_memory_that_nobody_holds_is_given_up(tmp_path: Path, path: Path) -> None:
    model = load(tmp_path, 2)
    memory = heard(model, path)
    with model.lock:
        model.ahead.add(memory)
        del memory
        gc.collect()
        deadline = time.monotonic() + 60
        while recalling() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not recalling()


def test_an_error_ends_it_until_another_memory_comes(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tmp_path, 2)
    memory = heard(model, path)
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda error: told.append(str(error.exc_value)))

    def fail(*arguments: object) -> None:
        raise MemoryError("too much")

    with monkeypatch.context() as patch:
        patch.setattr(model.backend, "answer_spans", fail)
        model.ahead.add(memory)
        wait()
    assert told == ["too much"] and not memory.recalled
    model.ahead.add(memory)
    wait()
    assert len(memory.recalled) == memory.intervals


def test_what_is_not_asked_through_words_is_left_alone(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SpeechModel.load(str(save_checkpoint(tmp_path / "plain", tiny_config())))
    answers_itself, model = load(tmp_path / "itself", 0), load(tmp_path, 2)
    long = heard(model, path)
    monkeypatch.setattr(recall_ahead, "MOST_INTERVALS", long.intervals - 1)
    for one, memory in ((plain, heard(plain, path)), (answers_itself, heard(answers_itself, path)), (model, long)):
        one.ahead.add(memory)
        assert not recalling() and not memory.recalled


def test_the_program_ends_though_there_is_more_to_recall() -> None:
    done = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
