"""What must hold of Speech Summarization Tokens, in the torch network itself and to the last digit.

Beside test_invariants.py, which drives every backend from outside, these tests hand random speech tokens to
the network, use float64 where a bound is tight, and look at gradients. Numbers are the rule's.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_xl.config import ModelConfig
from speech_xl.conversation import Listening
from speech_xl.model import SpeechModel
from speech_xl.schedule import Ratio, Scheduler, whole_pass
from tests.test_torch_models import qwen2
from tests.tiny import configs, pooled_of, scheduler_of, tiny_model, write_sound
from torch_backend.backend import Backend, State

few = settings(max_examples=15, deadline=None)
choices = st.lists(st.sampled_from([None, 0, 1]), min_size=1, max_size=4)  # raw, or the number of a ratio


def listed(config: ModelConfig, drawn: list[int | None]) -> list[Ratio]:
    return [None if number is None else config.sst.ratios[number] for number in drawn]


def make(config: ModelConfig, dtype: torch.dtype = torch.float64) -> Backend:
    return Backend(tiny_model(config).to(dtype), config)


def speech_of(config: ModelConfig, tokens: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, tokens, config.decoder.hidden_size, generator=generator).to(dtype)


def ids_of(config: ModelConfig, count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, config.decoder.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def hear(backend: Backend, speech: torch.Tensor, prefix: torch.Tensor, ratios: list[Ratio]) -> tuple[State, Scheduler]:
    scheduler = scheduler_of(backend.config, ratios, len(prefix))
    state = backend.start(prefix.tolist())
    state.queued = speech
    for plan in list(scheduler.plan_all(speech.shape[1])):
        backend.close_intervals([(state, [plan])])
    return state, scheduler


def logits_behind(backend: Backend, state: State, base: int, text: torch.Tensor) -> torch.Tensor:
    """(vocab_size,) after the last of `text`."""
    return torch.from_numpy(backend.logits(state, text.tolist(), base))


def run_whole(backend: Backend, speech: torch.Tensor, prefix: torch.Tensor, ratios: list[Ratio], text: torch.Tensor):
    """speech (B, N, D), prefix (B, P), text (B, T) -> logits (B, R, vocab_size) of one masked pass."""
    decoder, rows = backend.model.decoder, len(speech)
    scheduler = scheduler_of(backend.config, ratios, prefix.shape[1])
    passed = whole_pass(prefix.shape[1], list(scheduler.plan_all(speech.shape[1])), [text.shape[1]])
    ssts = decoder.sst_embedding.expand(rows, passed.ssts, -1)
    x = torch.cat([decoder.embed_tokens(prefix), speech, ssts, decoder.embed_tokens(text)], dim=1)
    positions = [torch.from_numpy(p).expand(rows, -1) for p in (passed.query_positions, passed.key_positions)]
    mask = torch.from_numpy(passed.mask).expand(rows, 1, -1, -1)
    return decoder.logits(
        decoder.whole(x, *positions, mask, passed.sst_rows, pooled_of(backend.config, passed, len(x)))
    )


@pytest.mark.parametrize("seconds", [0.1, 2.5, 6.41])
def test_1_the_size_of_decoded_blocks_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, tiny_speech_model: SpeechModel, tmp_path, seconds: float
) -> None:
    """Through the real pipeline: file, decoder, features, encoder, intervals."""
    from speech_xl import prefetch as module

    path, found = write_sound(tmp_path / "talk.wav", seconds, rate=22_050), []
    reader = module.AudioReader
    for block_seconds in (5.0, 0.1, 0.37, 2.0):
        monkeypatch.setattr(module, "AudioReader", lambda path, size=block_seconds: reader(path, size))
        heard = Listening(tiny_speech_model, path)
        list(heard)
        found.append(tiny_speech_model.backend.export_memory(heard.memory.state))
    for other in found[1:]:
        assert all(np.array_equal(found[0][name], other[name]) for name in other)


@few
@given(configs(), st.integers(0, 60), st.integers(0, 7), choices)
def test_2_streaming_equals_one_masked_pass_in_float32(config: ModelConfig, tokens: int, p: int, drawn: list) -> None:
    """The rule's own bound, 1e-5 of float32, holds of numbers of ordinary size."""
    model = tiny_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(0.3)
    backend = Backend(model, config)
    speech, prefix, text = speech_of(config, tokens, dtype=torch.float32), ids_of(config, p), ids_of(config, 4, seed=2)
    state, scheduler = hear(backend, speech, prefix, listed(config, drawn))
    with torch.inference_mode():
        whole = run_whole(backend, speech, prefix[None], listed(config, drawn), text[None])[0, -1]
    torch.testing.assert_close(logits_behind(backend, state, scheduler.base, text), whole, atol=1e-5, rtol=1e-5)


@few
@given(configs(), st.integers(0, 70), st.integers(0, 7), choices)
def test_3_memory_length_and_bytes_with_ragged_tails(config: ModelConfig, tokens: int, p: int, drawn: list) -> None:
    backend, ratios = make(config, torch.float32), listed(config, drawn)
    state, scheduler = hear(backend, speech_of(config, tokens, dtype=torch.float32), ids_of(config, p), ratios)
    w, slots = config.sst.interval, p
    for i in range(-(-tokens // w)):
        n, ratio = min(w, tokens - i * w), ratios[min(i, len(ratios) - 1)]
        slots += n if ratio is None else -(-n // ratio)
    assert scheduler.base == slots and all(layer.length == slots for layer in state.memory)
    d = config.decoder
    assert backend.memory_bytes(state) == slots * 2 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim * 4
    assert state.queued.shape[1] == 0


@few
@given(configs(), st.integers(1, 50), st.integers(0, 5))
def test_4_all_raw_is_the_plain_causal_model_whatever_the_interval(config: ModelConfig, tokens: int, p: int) -> None:
    config = dataclasses.replace(config, sst=dataclasses.replace(config.sst, horizon=None))  # a causal model sees all
    backend, reference = make(config), qwen2(config).double()
    ours = dict(backend.model.decoder.named_parameters())
    with torch.no_grad():
        for name, target in reference.named_parameters():
            source = ours.get(name.removeprefix("model."))
            target.copy_(source) if source is not None else target.zero_()
    speech, prefix, text = speech_of(config, tokens), ids_of(config, p), ids_of(config, 3, seed=2)
    state, scheduler = hear(backend, speech, prefix, [None])
    embed = backend.model.decoder.embed_tokens
    with torch.inference_mode():
        expected = reference(inputs_embeds=torch.cat([embed(prefix), speech[0], embed(text)])[None]).logits[0, -1]
    torch.testing.assert_close(logits_behind(backend, state, scheduler.base, text), expected, atol=1e-5, rtol=1e-5)


@few
@given(configs(), st.integers(2, 4), choices)
def test_5_and_6_a_closed_interval_is_its_slots_and_nothing_else(
    config: ModelConfig, intervals: int, drawn: list
) -> None:
    """Every interval starts from a fresh state that was given the slots alone: no bit of what follows differs."""
    backend, ratios, w = make(config, torch.float32), listed(config, drawn), config.sst.interval
    speech, prefix = speech_of(config, intervals * w, dtype=torch.float32), ids_of(config, 2)
    state, scheduler = hear(backend, speech, prefix, ratios)
    again = scheduler_of(config, ratios, 2)
    carried = backend.start(prefix.tolist())
    for plan in list(again.plan_all(intervals * w)):
        before = backend.export_memory(carried)
        carried = backend.import_memory(before)
        carried.queued = speech[:, plan.first_token : plan.first_token + plan.tokens]
        backend.close_intervals([(carried, [plan])])
        after = backend.export_memory(carried)
        assert all(np.array_equal(after[name][:, :, : plan.base], before[name]) for name in before)
    ours, theirs = backend.export_memory(state), backend.export_memory(carried)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    text = ids_of(config, 3, seed=2)
    assert torch.equal(*(logits_behind(backend, s, scheduler.base, text) for s in (state, carried)))


@few
@given(configs())
def test_7_the_answers_gradient_reaches_ssts_and_the_first_intervals_speech(config: ModelConfig) -> None:
    backend, w = make(config), config.sst.interval
    backend.model.requires_grad_(True)
    speech = speech_of(config, 3 * w).requires_grad_()
    logits = run_whole(backend, speech, ids_of(config, 1)[None], [config.sst.ratios[-1]], ids_of(config, 2)[None])
    logits[0, -1].logsumexp(-1).backward()
    assert speech.grad[0, :w].abs().amax(1).min() > 0  # every token of it
    decoder = backend.model.decoder
    assert decoder.sst_embedding.grad.abs().max() > 0
    for number, layer in enumerate(decoder.layers if config.sst.own_projections else ()):
        # The last layer's SST queries answer to nobody.
        for name in ("sst_k_proj", "sst_v_proj", *(["sst_q_proj"] if number + 1 < len(decoder.layers) else [])):
            assert getattr(layer.self_attn, name).weight.grad.abs().max() > 0


@few
@given(configs(), st.integers(1, 40), choices)
def test_8_speech_rows_do_not_know_the_ssts_of_their_own_interval(
    config: ModelConfig, tokens: int, drawn: list
) -> None:
    """Other SST parameters leave the whole first interval's speech rows as they were."""
    backend, ratios = make(config), listed(config, drawn)
    speech, prefix, text = speech_of(config, tokens), ids_of(config, 2)[None], ids_of(config, 1)[None]
    found = []
    for _ in range(2):
        with torch.no_grad():
            found.append(run_whole(backend, speech, prefix, ratios, text)[0, : 2 + min(tokens, config.sst.interval)])
            for name, parameter in backend.model.decoder.named_parameters():
                if "sst_" in name:
                    parameter.mul_(-1.5)
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


@few
@given(configs(), st.integers(1, 40), choices)
def test_9_no_row_of_a_batch_knows_another(config: ModelConfig, tokens: int, drawn: list) -> None:
    backend, ratios = make(config), listed(config, drawn)
    speech = torch.cat([speech_of(config, tokens, seed) for seed in range(3)])
    prefix, text = (torch.stack([ids_of(config, n, seed) for seed in range(3)]) for n in (2, 3))
    with torch.inference_mode():
        together = run_whole(backend, speech, prefix, ratios, text)
        for row in range(3):
            alone = run_whole(backend, *(x[row : row + 1] for x in (speech, prefix)), ratios, text[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], atol=1e-9, rtol=1e-9)
