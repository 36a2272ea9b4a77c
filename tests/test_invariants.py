"""What must hold of Speech Summarization Tokens, on random configurations, on every backend that is installed.

The numbers are those of the rule's list of invariants; 7 and 8 need gradients or the bare network and are in
test_torch_models.py, 10 is the random prefix of `configs`, 11 is test_mlx_parity.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.backend import BACKENDS, is_installed
from speech_xl.config import HOP_LENGTH, ModelConfig
from speech_xl.conversation import Listening, ask
from speech_xl.model import SpeechModel
from speech_xl.schedule import memory_slots
from tests.tiny import configs, save_checkpoint, scheduler_of, tiny_config, write_sound

INSTALLED = [name for name in BACKENDS if is_installed(name)]
few = settings(max_examples=6, deadline=None)


def load(config: ModelConfig, folder: str, backend: str) -> SpeechModel:
    return SpeechModel.load(str(save_checkpoint(Path(folder) / "model", config)), backend)


def random_mel(config: ModelConfig, windows: int, seed: int) -> np.ndarray:
    shape = (windows, config.encoder.num_mel_bins, config.encoder.window_frames)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hear_tokens(model: SpeechModel, mel: np.ndarray, listed: list, groups: list[int]):
    """Windows in `groups`, intervals closed as soon as they fill, tail last -> (state, scheduler)."""
    backend, per_window = model.backend, model.config.tokens_per_window
    scheduler = scheduler_of(model.config, listed, len(model.prompt.prefix_ids))
    state, queued, at = backend.start(model.prompt.prefix_ids), 0, 0
    for size in groups:
        part = mel[at : at + size]
        at += size
        if not len(part):
            continue
        positions = np.full(len(part), model.config.encoder.max_source_positions)
        backend.hear([(state, [per_window] * len(part))], part, positions)
        queued += per_window * len(part)
        while queued >= model.interval:
            backend.close_intervals([(state, [scheduler.next(model.interval)])])
            queued -= model.interval
    if queued:
        backend.close_intervals([(state, [scheduler.next(queued)])])
    return state, scheduler


def listed_ratios(config: ModelConfig) -> list:
    return [config.sst.ratios[-1], None, *config.sst.ratios]


@pytest.mark.parametrize("backend", INSTALLED)
@few
@given(config=configs(), cut=st.integers(0, 5))
def test_1_chunking_does_not_matter(backend: str, config: ModelConfig, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = load(config, folder, backend)
        mel = random_mel(config, 5, 1)
        states = [hear_tokens(model, mel, listed_ratios(config), g)[0] for g in ([5], [cut, 5 - cut])]
        one, other = (model.backend.export_memory(s) for s in states)
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-4)


@pytest.mark.parametrize("backend", INSTALLED)
@few
@given(config=configs(), windows=st.integers(0, 4))
def test_3_memory_length_and_bytes_are_exact(backend: str, config: ModelConfig, windows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = load(config, folder, backend)
        state, scheduler = hear_tokens(model, random_mel(config, windows, 2), listed_ratios(config), [windows])
        slots = model.backend.export_memory(state)["keys"].shape[2]
        assert slots == scheduler.base
        assert model.backend.memory_bytes(state) == slots * config.kv_values_per_slot * model.backend.itemsize
        if windows == 0:
            assert slots == len(model.prompt.prefix_ids)


@pytest.mark.parametrize("backend", INSTALLED)
@few
@given(config=configs())
def test_5_later_audio_never_changes_a_closed_interval(backend: str, config: ModelConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = load(config, folder, backend)
        mel = random_mel(config, 4, 3)
        other = mel.copy()
        other[-1] += 1
        memories = []
        for sound in (mel, other):
            state, _ = hear_tokens(model, sound, listed_ratios(config), [1, 1, 1, 1])
            memories.append(model.backend.export_memory(state)["values"])
        tokens = 3 * config.tokens_per_window // model.interval * model.interval
        plans = list(scheduler_of(config, listed_ratios(config), len(model.prompt.prefix_ids)).plan_all(tokens))
        closed = plans[-1].base + plans[-1].kept if plans else len(model.prompt.prefix_ids)
        assert np.array_equal(memories[0][:, :, :closed], memories[1][:, :, :closed])
        assert not np.array_equal(memories[0], memories[1])


@pytest.mark.parametrize("backend", INSTALLED)
@few
@given(config=configs())
def test_6_nothing_later_depends_on_raw_keys_of_a_closed_interval(backend: str, config: ModelConfig) -> None:
    """A memory carried through arrays is all there is: hearing on from it gives the same as never stopping."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(config, folder, backend)
        ratio = config.sst.ratios[0]
        windows = model.interval  # a whole number of intervals in the first half
        mel = random_mel(config, 2 * windows, 4) if windows <= 8 else random_mel(config, 2 * 8, 4)
        half = len(mel) // 2
        per_window = config.tokens_per_window
        first_tokens = half * per_window // model.interval * model.interval
        scheduler = scheduler_of(model.config, [ratio], len(model.prompt.prefix_ids))
        state = model.backend.start(model.prompt.prefix_ids)
        positions = np.full(len(mel), config.encoder.max_source_positions)
        model.backend.hear([(state, [per_window] * len(mel))], mel, positions)
        for plan in list(scheduler.plan_all(first_tokens)):
            model.backend.close_intervals([(state, [plan])])
        carried = model.backend.import_memory(model.backend.export_memory(state))
        model.backend.hear([(carried, [0] * len(mel))], mel, positions)  # nothing of it is kept
        question = model.prompt.question_ids("what?")
        steps = [next(model.backend.answer(s, question, scheduler.base)) for s in (state, carried)]
        assert steps[0].token == steps[1].token
        np.testing.assert_allclose(steps[0].slot_weights, steps[1].slot_weights, atol=1e-6)


@pytest.mark.parametrize("backend", INSTALLED)
def test_9_no_state_leaks_between_recordings_or_questions(backend: str, tmp_path: Path) -> None:
    model = load(tiny_config(), str(tmp_path), backend)
    paths = [write_sound(tmp_path / f"{i}.wav", 3 + i, seed=i) for i in range(2)]

    def answers(path: Path, questions: list[str]) -> dict[str, str]:
        listening = Listening(model, path)
        list(listening)
        found = {}
        for question in questions:
            asking = ask(model, listening.memory, question)
            list(asking)
            found[question] = asking.answer.answer
        return found

    alone = [answers(p, ["a?", "b?"]) for p in paths]
    beside = Listening(model, paths[0])
    events = iter(beside)
    next(events)  # half heard while the others are asked
    again = [answers(p, ["b?", "a?"]) for p in reversed(paths)][::-1]
    beside.cancel()
    assert alone == again


@pytest.mark.parametrize("backend", INSTALLED)
def test_a_heard_file_has_the_memory_that_its_length_says(backend: str, tmp_path: Path) -> None:
    model = load(tiny_config(), str(tmp_path), backend)
    for seconds in (0.11, 1.0, 5.12, 6.4321):
        path = write_sound(tmp_path / "talk.wav", seconds)
        for ratio in (None, *model.ratios):
            listening = Listening(model, path, ratio)
            events = list(listening)
            memory = listening.memory
            tokens = model.config.tokens_for(round(seconds * 16_000))
            assert (
                memory.tokens == tokens == -(-round(seconds * 16_000) // (model.config.frames_per_token * HOP_LENGTH))
            )
            assert memory.slots == len(memory.prefix) + memory_slots(tokens, model.interval, ratio)
            assert memory.bytes == memory.slots * model.bytes_per_slot == events[-1].memory_bytes
            assert memory.spans[-1, 1] == tokens and events[-1].seconds == pytest.approx(seconds, abs=1e-3)
