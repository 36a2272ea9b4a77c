"""Operations and bytes counted from the configuration: against sums by hand, and against what torch counts as it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from benchmarks.models import qwen_7b
from benchmarks.operations import (
    adapter_operations,
    interval_operations,
    interval_parts,
    reading_operations,
    text_operations,
    token_bytes,
    weights,
    window_operations,
)
from speech_xl.config import ModelConfig
from speech_xl.schedule import FixedRatio, Scheduler, plan_interval
from tests.tiny import configs, tiny_config, tiny_model, tiny_recognizer_config
from torch_backend.backend import Backend


def counted(work: Callable[[], object]) -> int:
    """Operations of matrix products. Attention as products, too: of fused kernels torch counts those of GPUs alone."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def whisper(config: ModelConfig) -> WhisperConfig:
    e, r = config.encoder, config.recognizer or tiny_recognizer_config().recognizer
    return WhisperConfig(
        vocab_size=r.vocab_size,
        num_mel_bins=e.num_mel_bins,
        d_model=e.d_model,
        encoder_layers=e.encoder_layers,
        encoder_attention_heads=e.encoder_attention_heads,
        encoder_ffn_dim=e.encoder_ffn_dim,
        max_source_positions=e.max_source_positions,
        decoder_layers=r.decoder_layers,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        decoder_attention_heads=r.decoder_attention_heads,
        decoder_ffn_dim=r.decoder_ffn_dim,
        max_target_positions=r.max_target_positions,
        attn_implementation="eager",
    )


def test_by_hand() -> None:
    config = (
        tiny_config()
    )  # encoder width 16, 96 positions; decoder width 32, 4 heads of 8 (2 for keys), feed-forward 48
    projections, attention, feed_forward = 4 * 2 * 96 * 16 * 16, 2 * 2 * 96 * 96 * 16, 2 * 2 * 96 * 16 * 32
    convolutions = 2 * 192 * (3 * 80) * 16 + 2 * 96 * (3 * 16) * 16
    assert window_operations(config) == convolutions + projections + attention + feed_forward
    assert adapter_operations(config) == 2 * 16 * (16 * 4) * 24 + 2 * 16 * 24 * 32

    plan = plan_interval(0, 0, base=10, tokens=6, ratio=4)  # SSTs behind tokens 3 and 5
    speech_pairs, sst_pairs = 6 * 10 + (1 + 2 + 3 + 4 + 5 + 6), (10 + 4 + 1) + (10 + 6 + 1)
    keys, sst_rows, all_rows = (2 * (2 * rows * 32 * 16) for rows in (8, 2, 8))

    def outputs(rows: int) -> int:
        return 2 * (2 * rows * 32 * 32) + 3 * (2 * rows * 32 * 48)

    # Of two layers the first one makes all keys, and goes on with the SSTs alone; the last one makes their keys.
    assert interval_parts(config, plan) == (outputs(2) + keys + sst_rows, 4 * sst_pairs * 32)
    three = tiny_config(decoder__num_hidden_layers=3)
    more = outputs(8) + all_rows, 4 * (speech_pairs + sst_pairs) * 32
    assert interval_parts(three, plan) == (outputs(2) + keys + sst_rows + more[0], 4 * sst_pairs * 32 + more[1])
    assert interval_operations(three, plan) == sum(interval_parts(three, plan))
    pooled = tiny_config(sst__pooled=True)
    weighted = 2 * (2 * 8 * 16)  # in each layer: keys and values, the four tokens of each SST, two heads of 8
    assert interval_parts(pooled, plan) == (outputs(8) + 2 * all_rows + 2 * weighted, more[1])
    raw = plan_interval(0, 0, base=10, tokens=6, ratio=None)
    assert interval_parts(config, raw) == (outputs(6) + 2 * 2 * (2 * 6 * 32 * 16), 4 * speech_pairs * 32)

    words = 3
    pairs = 3 * 7 + (1 + 2 + 3)
    layer = 2 * (2 * words * 32 * 32) + 2 * (2 * words * 32 * 16) + 3 * (2 * words * 32 * 48) + 4 * pairs * 32
    last = 2 * (2 * 32 * 32) + 2 * (2 * words * 32 * 16) + 3 * (2 * 32 * 48) + 4 * (7 + 3) * 32
    assert text_operations(config, words, 7) == layer + last + 2 * 32 * config.decoder.vocab_size


@pytest.mark.parametrize("config", [tiny_config(), tiny_recognizer_config()], ids=["context", "whole windows"])
def test_a_window_is_what_transformers_whisper_computes(config: ModelConfig) -> None:
    encoder = WhisperEncoder(whisper(config)).eval()
    mel = torch.randn(3, config.encoder.num_mel_bins, config.encoder.window_frames)
    assert counted(lambda: encoder(mel)) == 3 * window_operations(config)
    ours = tiny_model(config).speech.encoder
    assert counted(lambda: ours(mel)) == 3 * window_operations(config)


def test_a_reading_is_what_transformers_whisper_computes() -> None:
    config = tiny_recognizer_config()
    network = WhisperDecoder(whisper(config)).eval()
    heard = torch.randn(1, config.encoder.max_source_positions, config.encoder.d_model)
    one = counted(lambda: network(input_ids=torch.tensor([[1]]), encoder_hidden_states=heard))
    width = config.encoder.d_model
    head = 2 * width * config.recognizer.vocab_size
    assert reading_operations(config, 1, 1) == one + head
    # Of more rows each sees the earlier ones only, and the head is needed once more: how silence is told.
    rows, layers = 5, config.recognizer.decoder_layers
    whole = counted(lambda: network(input_ids=torch.ones(1, rows, dtype=torch.int64), encoder_hidden_states=heard))
    unseen = layers * 2 * 2 * width * (rows * (rows - 1) // 2)
    assert reading_operations(config, 2, rows - 1) == whole - unseen + (rows - 1 + 1) * head


def test_a_token_behind_a_memory_is_what_transformers_qwen2_computes() -> None:
    config = tiny_config()
    d = config.decoder
    fields = {f.name: getattr(d, f.name) for f in dataclasses.fields(d)} | {"attn_implementation": "eager"}
    network = Qwen2ForCausalLM(Qwen2Config(**fields)).eval()
    cache = DynamicCache()
    with torch.inference_mode():
        network(input_ids=torch.ones(1, 9, dtype=torch.int64), past_key_values=cache)
    step = counted(lambda: network(input_ids=torch.tensor([[1]]), past_key_values=cache))
    assert step == text_operations(config, 1, 9)


@settings(max_examples=15, deadline=None)
@given(config=configs(), tokens=st.integers(1, 40), raw=st.booleans())
def test_a_backend_computes_no_less_than_what_is_needed(config: ModelConfig, tokens: int, raw: bool) -> None:
    backend = Backend(tiny_model(config), config)
    prefix = [1, 2, 3]
    state = backend.start(prefix)
    ratio = None if raw else config.sst.ratios[-1]
    plans = list(
        Scheduler(config.sst.interval, FixedRatio(ratio), len(prefix), horizon=config.sst.horizon).plan_all(tokens)
    )
    backend.hear_words(state, [5] * tokens)
    needed = sum(interval_parts(config, plan)[0] for plan in plans)  # torch counts no fused attention of a CPU

    def hear() -> None:
        for plan in plans:
            backend.close_intervals([(state, [plan])])

    assert 0 < needed <= counted(hear)


def test_bytes_of_a_token_are_weights_and_memory_once() -> None:
    config = tiny_config()
    d = config.decoder
    layer = 2 * 32 + (32 * 32 + 32) + 2 * (32 * 16 + 16) + 32 * 32 + 3 * 32 * 48
    assert token_bytes(config, 4, 1000) == (2 * layer + 32 + d.vocab_size * 32) * 4 + 1000
    assert weights(config, "decoder.") == sum(p.numel() for p in tiny_model(config).decoder.parameters())


def test_the_large_shape_is_qwen2_5_7b_behind_whisper_small() -> None:
    config = qwen_7b()
    assert weights(config, "decoder.") - weights(config, "decoder.", without="sst_") == 462_554_624  # docs/sst.md
    assert weights(config, "decoder.", without="sst_") == 7_615_616_512  # as its model card counts
    assert weights(config, "speech.encoder.") == 88_154_112
    assert config.kv_values_per_slot == 2 * 28 * 4 * 128
    assert config.tokens_for(3600 * 16_000) == 45_000
