"""A checkpoint with a recogniser, from a file to answers: what events say, and that memories hold word times."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speech_xl.conversation import Heard, Listening, ask
from speech_xl.describe import describe
from speech_xl.errors import CheckpointError
from speech_xl.memory import load_memory, save_memory
from speech_xl.model import SpeechModel
from tests.tiny import save_checkpoint, sound, tiny_recognizer_config

RATE = 16_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, so it reads gibberish; it must be sure enough of it not to pass for silent."""
    return save_checkpoint(tmp_path_factory.mktemp("words") / "tiny", tiny_recognizer_config(), seed=1)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> SpeechModel:
    return SpeechModel.load(str(checkpoint), "torch")


def written(path: Path, *parts: np.ndarray) -> Path:
    sf.write(path, np.concatenate(parts), RATE, subtype="FLOAT")
    return path


def heard(model: SpeechModel, path: Path, ratio: int | None = 4, **options: object) -> tuple[Listening, list[Heard]]:
    listening = Listening(model, path, ratio, **options)
    return listening, list(listening)


def test_words_become_tokens_with_their_times(model: SpeechModel, tmp_path: Path) -> None:
    """Said for nine seconds, silent for twenty, said for four."""
    path = written(tmp_path / "talk.wav", sound(9, 1), np.zeros(20 * RATE, np.float32), sound(4, 2))
    listening, events = heard(model, path)
    memory, times = listening.memory, listening.memory.times
    assert memory.tokens == len(times) > 3 * model.interval and memory.seconds == 33
    assert (np.diff(times[:, 0]) >= 0).all() and (times[:, 0] <= times[:, 1]).all()
    assert times.min() >= 0 and times.max() <= 33
    assert not ((times[:, 0] > 11.5) & (times[:, 1] < 28)).any()  # a window is at most 1.8 s
    closed = [e for e in events if e.interval_slots]
    assert [e.interval for e in closed] == list(range(memory.intervals))
    assert sum(len(e.words) for e in events) == len({w for e in events for w in e.words}) > 0
    assert all(e.text == " ".join(w.text for w in e.words) for e in events)
    assert all(e.interval_start - 0.01 <= w.start <= e.interval_end for e in closed for w in e.words)
    seconds = [e.seconds for e in events]
    assert seconds == sorted(seconds) and seconds[-1] == pytest.approx(33, abs=0.01)
    assert max(np.diff([0, *seconds])) < 10  # a long silence does not look stuck
    quiet = [e for e in events if not e.interval_slots and 17 < e.seconds < 28]
    assert quiet and all(e.level == -100 and e.text == "" for e in quiet)
    assert max(e.level for e in closed) > -20
    save_memory(memory, tmp_path / "talk.sxl", model)
    loaded = load_memory(tmp_path / "talk.sxl", model)
    assert np.array_equal(loaded.times, times)
    asking = ask(model, loaded, "what drink is order 4?", longest=5)
    list(asking)
    assert all(0 <= e.start < e.end <= 33 for e in asking.answer.evidence)


@pytest.mark.parametrize("previous_id", [None, 7])
def test_any_blocks_give_the_same_memory(
    previous_id: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speech_xl import prefetch

    config = tiny_recognizer_config()
    config = dataclasses.replace(config, recognizer=dataclasses.replace(config.recognizer, previous_id=previous_id))
    model = SpeechModel.load(str(save_checkpoint(tmp_path / "tiny", config, seed=1)), "torch")
    path, found, reader = written(tmp_path / "talk.wav", sound(7.3, 3)), [], prefetch.AudioReader
    for seconds in (5.0, 0.37, 1.8):
        monkeypatch.setattr(prefetch, "AudioReader", lambda name, block=seconds: reader(name, block))
        listening, events = heard(model, path)
        arrays = model.backend.export_memory(listening.memory.state)
        found.append((arrays["keys"], arrays["values"], listening.memory.times, [e.level for e in events]))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_recording_without_a_word_still_answers(model: SpeechModel, tmp_path: Path) -> None:
    listening, events = heard(model, written(tmp_path / "hush.wav", np.zeros(12 * RATE, np.float32)))
    memory = listening.memory
    assert memory.tokens == memory.intervals == 0 and memory.seconds == events[-1].seconds == 12
    asking = ask(model, memory, "what?", longest=3)
    list(asking)
    assert asking.answer.evidence == [] and asking.answer.heard_seconds == 12
    save_memory(memory, tmp_path / "hush.sxl", model)
    assert load_memory(tmp_path / "hush.sxl", model).slots == memory.slots == len(memory.prefix)


def test_a_snapshot_holds_the_words_so_far(model: SpeechModel, tmp_path: Path) -> None:
    listening = Listening(model, written(tmp_path / "talk.wav", sound(12, 4)), 4)
    events = iter(listening)
    while not next(events).tokens:
        pass
    early = listening.snapshot()
    assert 0 < early.tokens == early.spans[-1, 1] and early.times.max() <= early.seconds < 12
    list(events)
    assert np.array_equal(listening.memory.times[: early.tokens], early.times)


def test_a_budget_that_talk_outgrows_is_said_so(model: SpeechModel, tmp_path: Path) -> None:
    """Gibberish has more tokens a second than any talk."""
    path = written(tmp_path / "talk.wav", sound(12, 5))
    estimate = model.config.tokens_for(12 * RATE)
    assert estimate == 54
    budget = (1 + estimate) * model.bytes_per_slot
    listening, _ = heard(model, path, "default", memory_budget=budget)
    assert listening.ratio is None and listening.memory.bytes > budget
    assert any("more words than was estimated" in warning for warning in listening.memory.warnings)


def test_info_says_where_tokens_come_from(checkpoint: Path) -> None:
    lines = dict(describe(checkpoint))
    assert "about 3 tokens per second" in lines["speech tokens"] and "recognizer" in lines["parameters"]
    assert lines["memory per hour, raw"].startswith("at most about")


def test_without_its_tokenizer_a_recognizer_does_not_load(checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.iterdir():
        if path.name != "recognizer_tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"recognizer_tokenizer\.json"):
        SpeechModel.load(str(tmp_path), "torch")
