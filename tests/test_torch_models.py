"""The torch network against transformers' own, against itself streamed, and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech_xl.config import ModelConfig
from speech_xl.schedule import ListedRatios, Scheduler, whole_pass
from tests.tiny import configs, pooled_of, scheduler_of, tiny_config, tiny_model
from torch_backend.backend import Backend, State
from torch_backend.decoder import Decoder
from torch_backend.model import SpeechXL

few = settings(max_examples=8, deadline=None)


def qwen2(config: ModelConfig) -> Qwen2ForCausalLM:
    d = config.decoder
    made = Qwen2Config(
        vocab_size=d.vocab_size,
        hidden_size=d.hidden_size,
        intermediate_size=d.intermediate_size,
        num_hidden_layers=d.num_hidden_layers,
        num_attention_heads=d.num_attention_heads,
        num_key_value_heads=d.num_key_value_heads,
        head_dim=d.head_dim,
        rope_theta=d.rope_theta,
        rms_norm_eps=d.rms_norm_eps,
        tie_word_embeddings=d.tie_word_embeddings,
        attention_dropout=0.0,
    )
    return Qwen2ForCausalLM(made).eval()


def stream(
    model: SpeechXL, config: ModelConfig, prefix: torch.Tensor, speech: torch.Tensor, plans: list
) -> tuple[Backend, State]:
    """Prefix, then interval after interval."""
    backend = Backend(model, config)
    state = backend.start(prefix.tolist())
    state.queued = speech
    for plan in plans:
        backend.close_intervals([(state, [plan])])
    return backend, state


def one_pass(
    decoder: Decoder,
    config: ModelConfig,
    prefix: torch.Tensor,
    speech: torch.Tensor,
    plans: list,
    texts: list[torch.Tensor],
):
    """-> logits (R, vocab), the pass."""
    passed = whole_pass(len(prefix), plans, [len(t) for t in texts])
    rows = [decoder.embed_tokens(prefix), speech[0], decoder.sst_embedding.expand(passed.ssts, -1)]
    x = torch.cat([*rows, *[decoder.embed_tokens(t) for t in texts]])[None]
    out = decoder.whole(
        x,
        torch.from_numpy(passed.query_positions)[None],
        torch.from_numpy(passed.key_positions)[None],
        torch.from_numpy(passed.mask)[None, None],
        passed.sst_rows,
        pooled_of(config, passed),
    )
    return decoder.logits(out)[0], passed


@few
@given(
    configs(), st.integers(0, 50), st.integers(0, 3), st.lists(st.sampled_from(["raw", 0, 1]), min_size=1, max_size=4)
)
def test_streaming_equals_one_masked_pass(config: ModelConfig, tokens: int, prefix: int, drawn: list) -> None:
    model = tiny_model(config)
    torch.manual_seed(1)
    ids = torch.randint(0, config.decoder.vocab_size, (prefix,))
    speech = torch.randn(1, tokens, config.decoder.hidden_size)
    texts = [torch.randint(0, config.decoder.vocab_size, (n,)) for n in (4, 2)]
    listed = [None if r == "raw" else config.sst.ratios[r] for r in drawn]
    scheduler = scheduler_of(config, listed, prefix)
    plans = list(scheduler.plan_all(tokens))
    with torch.inference_mode():
        logits, passed = one_pass(model.decoder, config, ids, speech, plans, texts)
    backend, state = stream(model, config, ids, speech, plans)
    assert all(layer.length == scheduler.base for layer in state.memory)
    last = len(logits) - 6
    for text in texts:
        last += len(text)
        streamed = torch.from_numpy(backend.logits(state, text.tolist(), scheduler.base))
        torch.testing.assert_close(streamed, logits[last - 1], atol=1e-5, rtol=1e-4)
        step = next(backend.answer(state, text.tolist(), scheduler.base))
        assert step.token == int(streamed.argmax()) and step.slot_weights.shape == (scheduler.base,)
        assert step.slot_weights.sum() <= 1 + 1e-5
    assert passed.speech == tokens


@few
@given(configs(), st.integers(1, 40))
def test_all_raw_and_without_ssts_is_the_plain_causal_model(config: ModelConfig, tokens: int) -> None:
    """Invariants 4 and 8: raw is transformers' Qwen2, and so are the speech rows when SSTs are there."""
    whole, reference = tiny_model(config), qwen2(config)
    model = whole.decoder
    names = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            target = names.get(name if name.startswith("lm_head") else f"model.{name}")
            if target is not None:
                target.copy_(parameter)
            else:
                assert "sst_" in name
        for name, target in names.items():
            if "proj.bias" in name and not config.decoder.attention_bias:
                target.zero_()
    torch.manual_seed(2)
    speech = torch.randn(1, tokens, config.decoder.hidden_size)
    text = torch.randint(0, config.decoder.vocab_size, (3,))
    prefix = torch.randint(0, config.decoder.vocab_size, (2,))
    scheduler = Scheduler(config.sst.interval, ListedRatios((None,)), 2)
    plans = list(scheduler.plan_all(tokens))
    with torch.inference_mode():
        embedded = torch.cat([model.embed_tokens(prefix), speech[0], model.embed_tokens(text)])[None]
        expected = reference(inputs_embeds=embedded).logits[0]
        logits, _ = one_pass(model, config, prefix, speech, plans, [text])
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        backend, state = stream(whole, config, prefix, speech, plans)
        streamed = torch.from_numpy(backend.logits(state, text.tolist(), scheduler.base))
        torch.testing.assert_close(streamed, expected[-1], atol=1e-4, rtol=1e-4)
        # One interval with SSTs: its speech rows are the base model's.
        alone = Scheduler(max(config.sst.ratios) * tokens, ListedRatios((config.sst.ratios[0],)), 2)
        with_ssts, _ = one_pass(model, config, prefix, speech, list(alone.plan_all(tokens)), [])
        torch.testing.assert_close(with_ssts[: 2 + tokens], expected[: 2 + tokens], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("mels", "layers", "heads"), [(80, 1, 2), (128, 3, 4)])
def test_encoder_is_whispers(mels: int, layers: int, heads: int) -> None:
    config = tiny_config(
        encoder__num_mel_bins=mels, encoder__encoder_layers=layers, encoder__encoder_attention_heads=heads
    )
    e = config.encoder
    ours = tiny_model(config).speech.encoder
    theirs = WhisperEncoder(
        WhisperConfig(
            num_mel_bins=mels,
            d_model=e.d_model,
            encoder_layers=layers,
            encoder_attention_heads=heads,
            encoder_ffn_dim=e.encoder_ffn_dim,
            max_source_positions=e.max_source_positions,
            dropout=0.0,
        )
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    mel = torch.randn(2, mels, e.window_frames)
    with torch.inference_mode():
        torch.testing.assert_close(ours(mel), theirs(mel).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_the_answers_gradient_reaches_ssts_and_the_first_intervals_speech() -> None:
    """Invariant 7."""
    config = tiny_config()
    decoder = tiny_model(config).decoder.requires_grad_(True)
    speech = torch.randn(1, 40, config.decoder.hidden_size, requires_grad=True)
    plans = list(Scheduler(16, ListedRatios((4,)), 1).plan_all(40))
    logits, _ = one_pass(decoder, config, torch.tensor([1]), speech, plans, [torch.tensor([5, 6])])
    logits[-1].logsumexp(-1).backward()
    assert speech.grad[0, :16].abs().sum(1).min() > 0
    assert decoder.sst_embedding.grad.abs().max() > 0
    for layer in decoder.layers:
        for name in ("sst_k_proj", "sst_v_proj"):
            assert getattr(layer.self_attn, name).weight.grad.abs().max() > 0
    # The last layer's SST queries answer to nobody; every earlier layer's do.
    for layer in list(decoder.layers)[:-1]:
        assert layer.self_attn.sst_q_proj.weight.grad.abs().max() > 0


def test_positions_beyond_float16_and_bfloat16_stay_apart() -> None:
    decoder = tiny_model(tiny_config()).decoder
    cos, _ = decoder.rotation(torch.tensor([40_000, 40_001]))
    assert (cos[0] - cos[1]).abs().max() > 0.4
    assert np.isfinite(cos.numpy()).all()
