"""Summarizers that need no training: what their plans keep, and that both backends keep just that."""

from __future__ import annotations

import dataclasses
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.conversation import Listening, ask
from speech_xl.errors import ScheduleError
from speech_xl.memory import join_spans, load_memory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.schedule import FixedRatio, Scheduler, memory_slots
from speech_xl.storage import memory_storage
from speech_xl.summarizers import SUMMARIZERS, choose_summarizer
from tests.tiny import save_checkpoint, tiny_config, tiny_model, write_sound
from torch_backend.attention import rotate
from torch_backend.backend import Backend
from torch_backend.memory import KeyValues

BACKENDS = [name for name in ("torch", "mlx") if name == "torch" or (find_spec("mlx") and find_spec("mlx_backend"))]
UNTRAINED = [name for name, s in SUMMARIZERS.items() if not s.needs_training]
NOT_PACKED = memory_storage(16, 8)
TILING = ["stride", "pool", "attention"]  # one slot for each block of `ratio` tokens


@pytest.mark.parametrize("name", TILING)
@settings(deadline=None)
@given(tokens=st.integers(1, 60), ratio=st.sampled_from([None, 2, 4, 8]), prefix=st.integers(0, 2))
def test_slots_positions_and_spans_are_those_of_the_rule(
    name: str, tokens: int, ratio: int | None, prefix: int
) -> None:
    scheduler = Scheduler(16, FixedRatio(ratio), prefix, SUMMARIZERS[name].plan)
    plans = list(scheduler.plan_all(tokens))
    assert scheduler.base == prefix + memory_slots(tokens, 16, ratio)
    assert np.concatenate([p.slot_positions for p in plans]).tolist() == list(range(prefix, scheduler.base))
    spans = np.concatenate([p.spans for p in plans])
    assert spans[0, 0] == 0 and spans[-1, 1] == tokens and (spans[1:, 0] == spans[:-1, 1]).all()
    for plan in plans:
        assert plan.ssts == 0
        if plan.selection is not None:
            assert plan.selection.shape == (plan.kept, plan.tokens)
            np.testing.assert_allclose(plan.selection.sum(1), 1, atol=1e-6)
            for slot, (first, end) in enumerate(plan.spans - plan.first_token):
                used = np.flatnonzero(plan.selection[slot])
                assert first <= used.min() and used.max() == end - 1


@settings(deadline=None)
@given(tokens=st.integers(1, 90), ratio=st.sampled_from([2, 4, 8, 16]), prefix=st.integers(0, 2))
def test_window_has_the_slots_of_the_others_and_forgets_the_middle(tokens: int, ratio: int, prefix: int) -> None:
    scheduler = Scheduler(16, FixedRatio(ratio), prefix, SUMMARIZERS["window"].plan)
    plans = list(scheduler.plan_all(tokens))
    assert scheduler.base == prefix + memory_slots(tokens, 16, ratio)
    for plan in plans:
        base = plan.base - plan.evicted
        assert plan.speech_positions.tolist() == list(range(base, base + plan.tokens))
        assert plan.slot_positions.tolist() == list(range(base, plan.base + plan.kept))
    spans = join_spans([plan.past for plan in plans])
    assert spans.shape == (memory_slots(tokens, 16, ratio), 2)
    assert (spans[:, 1] - spans[:, 0] == 1).all() and (np.diff(spans[:, 0]) > 0).all()
    assert spans[-1, 1] == tokens
    if len(spans) > 8:
        assert spans[:4, 0].tolist() == [0, 1, 2, 3] or len(plans[0].spans) < 8


def test_window_moves_rows_up_as_if_they_had_been_heard_there() -> None:
    config = tiny_config()
    decoder = tiny_model(config).decoder
    rows = torch.randn(1, 2, 10, 8, generator=torch.Generator().manual_seed(2))
    memory = KeyValues(2, 8, torch.float32, torch.device("cpu"), NOT_PACKED, decoder.turned)
    memory.append(rotate(rows, decoder.rotation(torch.arange(10))), rows)
    fork = memory.rows((0, 10))
    memory.evict(3, 4)
    later = torch.randn(1, 2, 5, 8)
    memory.append(rotate(later, decoder.rotation(torch.arange(6, 11))), later)
    left = torch.cat([rows[:, :, :3], rows[:, :, 7:], later], 2)
    keys, values = memory.joined()
    torch.testing.assert_close(keys, rotate(left, decoder.rotation(torch.arange(11))))
    torch.testing.assert_close(values, left)
    assert torch.equal(fork.joined()[1], rows)


def kept(name: str, ratio: int, speech: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """Values and unrotated keys that one interval leaves in the first layer, computed by the torch decoder."""
    config = tiny_config()
    backend = Backend(tiny_model(config), config)
    plan = Scheduler(16, FixedRatio(ratio), 0, SUMMARIZERS[name].plan).next(speech.shape[1])
    still = dataclasses.replace(plan, slot_positions=np.zeros(plan.kept, np.int64))  # position 0: not rotated
    state = backend.start([])
    state.queued = speech
    backend.close_intervals([(state, [still])])
    return *state.memory[0].joined(), backend.model.decoder


def test_stride_keeps_rows_and_pool_keeps_their_means() -> None:
    speech = torch.randn(1, 14, 32, generator=torch.Generator().manual_seed(0))
    _, _, decoder = kept("stride", 4, speech)
    layer = decoder.layers[0]
    with torch.inference_mode():
        _, keys, values = layer.self_attn.project(layer.input_layernorm(speech))
    rows = [3, 7, 11, 13]
    torch.testing.assert_close(kept("stride", 4, speech)[0], keys[:, :, rows])
    torch.testing.assert_close(kept("stride", 4, speech)[1], values[:, :, rows])
    blocks = [values[:, :, a:b].mean(2) for a, b in ((0, 4), (4, 8), (8, 12), (12, 14))]
    torch.testing.assert_close(kept("pool", 4, speech)[1], torch.stack(blocks, 2))


def test_attention_keeps_rows_of_the_interval_in_order() -> None:
    speech = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    _, values, decoder = kept("attention", 4, speech)
    layer = decoder.layers[0]
    with torch.inference_mode():
        _, _, own = layer.self_attn.project(layer.input_layernorm(speech))
    for head in range(2):
        match = (values[0, head][:, None] == own[0, head][None]).all(-1)
        rows = match.float().argmax(1).tolist()
        assert match.any(1).all() and rows == sorted(set(rows))


@pytest.mark.parametrize("name", UNTRAINED)
@settings(max_examples=3, deadline=None)
@given(ratio=st.sampled_from([2, 8]))
def test_backends_agree_without_ssts(name: str, ratio: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_checkpoint(Path(folder) / "plain", tiny_config(sst=None))
        path, answers = write_sound(Path(folder) / "talk.wav", 30.0), []
        for backend in BACKENDS:
            model = SpeechModel.load(str(checkpoint), backend)
            listening = Listening(model, path, ratio, summarizer=name)
            list(listening)
            memory = listening.memory
            assert memory.slots == len(memory.prefix) + memory_slots(memory.tokens, model.interval, listening.ratio)
            assert memory.bytes == memory.slots * model.bytes_per_slot
            file = Path(folder) / f"{backend}.sxl"
            save_memory(memory, file, model)
            memory = load_memory(file, model)  # which checks every slot's span against the summarizer's plan
            assert memory.summarizer == name
            asking = ask(model, memory, "what drink?", longest=6)
            list(asking)
            answers.append(asking.answer.answer)
        assert len(set(answers)) == 1


def test_auto_takes_trained_ssts_and_otherwise_says_what_it_takes() -> None:
    assert choose_summarizer("auto", tiny_config())[0].name == "sst"
    for config in (tiny_config(sst=None), tiny_config(sst__trained=False)):
        summarizer, why = choose_summarizer("auto", config)
        assert not summarizer.needs_training and "no trained SSTs" in why


def test_without_training_all_is_kept_that_the_decoder_has_positions_for(tmp_path: Path) -> None:
    config = tiny_config(sst=None, decoder__max_position_embeddings=1000)
    model = SpeechModel.load(str(save_checkpoint(tmp_path / "plain", config)), "torch")
    chosen = [model.choose_ratio("default", None, seconds) for seconds in (30.0, 60.0, 150.0, 3600.0, None)]
    assert chosen == [None, 2, 4, 16, 16]  # 12.5 speech tokens a second into 487 slots
    assert model.choose_ratio(None, None, 3600.0) is None


@pytest.mark.parametrize(("name", "config"), [("best", tiny_config()), ("sst", tiny_config(sst=None))])
def test_summarizers_that_cannot_be(name: str, config) -> None:
    with pytest.raises(ScheduleError, match="choose"):
        choose_summarizer(name, config)
