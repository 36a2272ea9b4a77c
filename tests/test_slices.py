"""Slices of a memory, on both backends: rows untouched, positions kept, several asked at once as each alone."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.backend import is_installed
from speech_xl.config import ModelConfig
from speech_xl.conversation import Listening, ask
from speech_xl.errors import QuestionError
from speech_xl.memory import AudioMemory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.slices import slice_memory
from tests.tiny import configs, save_checkpoint, write_sound

BACKENDS = [
    "torch",
    pytest.param("mlx", marks=pytest.mark.skipif(not is_installed("mlx"), reason="MLX is not installed")),
]
few = settings(max_examples=8, deadline=None)
IDS = [5, 9, 12]


def heard(folder: str, config: ModelConfig, backend: str, ratio: int | None, bits: int = 16):
    model = SpeechModel.load(str(save_checkpoint(Path(folder) / "model", config)), backend, bits)
    listening = Listening(model, write_sound(Path(folder) / "talk.wav", 4.4), ratio)
    list(listening)
    return model, listening.memory


def alone(model: SpeechModel, memory: AudioMemory, span: tuple[int, int], ends: set[int], longest: int) -> list[int]:
    """The answer to IDS of one slice, token by token."""
    prefix = len(memory.prefix)
    part = model.backend.slice(memory.state, prefix, *span)
    tokens = (step.token for step in model.backend.answer(part, IDS, prefix + span[1]))
    return list(itertools.takewhile(lambda token: token not in ends, itertools.islice(tokens, longest)))


@pytest.mark.parametrize("backend", BACKENDS)
@few
@given(config=configs(), raw=st.booleans(), bits=st.sampled_from([16, 8, 4]), data=st.data())
def test_spans_asked_at_once_answer_as_each_alone(
    backend: str, config: ModelConfig, raw: bool, bits: int, data
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, memory = heard(folder, config, backend, None if raw else config.sst.ratios[0], bits)
        bound = st.integers(0, len(memory.spans))
        spans = data.draw(st.lists(st.tuples(bound, bound).map(sorted).map(tuple), min_size=1, max_size=4))
        free = [alone(model, memory, span, set(), 8) for span in spans]
        ends = {free[0][3], free[-1][5]}  # so that some rows leave the batch before others
        expected = [alone(model, memory, span, ends, 8) for span in spans]
        assert model.backend.answer_spans(memory.state, len(memory.prefix), spans, IDS, ends, 8) == expected
        assert model.backend.answer_spans(memory.state, len(memory.prefix), spans, IDS, set(), 8) == free


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_slice_keeps_its_rows_as_they_are(backend: str, bits: int, tiny_checkpoint: Path, recording: Path) -> None:
    model = SpeechModel.load(str(tiny_checkpoint), backend, bits)
    listening = Listening(model, recording, 4)
    list(listening)
    whole, p = listening.memory, len(listening.memory.prefix)
    part = model.backend.slice(whole.state, p, 3, 11)
    arrays, sliced = model.backend.export_memory(whole.state), model.backend.export_memory(part)
    for name, rows in arrays.items():
        assert np.array_equal(sliced[name], np.concatenate([rows[:, :, :p], rows[:, :, p + 3 : p + 11]], axis=2))
    assert model.backend.memory_bytes(part) * whole.slots == model.backend.memory_bytes(whole.state) * (p + 8)


@pytest.fixture(scope="module")
def memory(tiny_speech_model: SpeechModel, recording: Path) -> AudioMemory:
    listening = Listening(tiny_speech_model, recording, 4)
    list(listening)
    return listening.memory


def test_a_span_is_answered_from_its_own_slots(tiny_speech_model: SpeechModel, memory: AudioMemory) -> None:
    part = slice_memory(tiny_speech_model, memory, 1.5, 3.0)
    times = memory.slot_times
    inside = np.flatnonzero((times[:, 0] < 3) & (times[:, 1] > 1.5))
    assert np.array_equal(part.slot_times, times[inside]) and part.intervals == 2
    assert part.position == len(memory.prefix) + inside[-1] + 1 > part.slots
    assert part.bytes == part.slots * tiny_speech_model.bytes_per_slot
    asking = ask(tiny_speech_model, part, "what drink is order 4?", longest=6)
    list(asking)
    assert asking.answer.evidence
    assert all(times[inside[0], 0] <= e.start < e.end <= times[inside[-1], 1] + 0.01 for e in asking.answer.evidence)
    ids = tiny_speech_model.prompt.question_ids("what drink is order 4?")
    bounds = [(int(inside[0]), int(inside[-1]) + 1)]
    arguments = (memory.state, len(memory.prefix), bounds, ids, tiny_speech_model.prompt.end_ids, 6)
    tokens = tiny_speech_model.backend.answer_spans(*arguments)[0]
    assert tiny_speech_model.prompt.decode(tokens) == asking.answer.answer


def test_the_whole_recording_as_a_span_answers_as_the_memory(tiny_speech_model, memory: AudioMemory) -> None:
    answers = []
    for asked in (memory, slice_memory(tiny_speech_model, memory, None, None)):
        asking = ask(tiny_speech_model, asked, "a b?", longest=8)
        list(asking)
        answers.append((asking.answer.answer, asking.answer.evidence))
    assert answers[0] == answers[1]


def test_a_span_where_nothing_is_said_is_refused(tiny_speech_model, memory: AudioMemory) -> None:
    times = memory.times.copy()
    times[20:] += 3  # a silence of three seconds, in which no speech token stands
    source = dataclasses.replace(memory.recording, seconds_heard=memory.seconds + 3)
    pausing = dataclasses.replace(memory, times=times, recording=source)
    with pytest.raises(QuestionError, match="Nothing is said between 0:02 and 0:04"):
        slice_memory(tiny_speech_model, pausing, 2.0, 4.0)
    with pytest.raises(QuestionError, match="outside"):
        slice_memory(tiny_speech_model, memory, 2.0, 9.0)


def test_a_slice_is_not_kept(tiny_speech_model, memory: AudioMemory, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slice"):
        save_memory(slice_memory(tiny_speech_model, memory, 1, 2), tmp_path / "part.sxl", tiny_speech_model)
    assert not list(tmp_path.iterdir())
