"""Random little models and recordings for tests: real formats, no training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from speech_xl.config import (
    SAMPLING_RATE,
    AdapterConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    PromptConfig,
    RecognizerConfig,
    SSTConfig,
)
from speech_xl.config_file import save_config
from speech_xl.schedule import ListedRatios, Ratio, Scheduler, WholePass
from speech_xl.summarizers import ssts_of
from torch_backend.model import SpeechXL

VOCABULARY = 300
BEGIN, ANSWER, END = "<|begin|>", "<|answer|>", "<|end|>"


def build_tokenizer(corpus: list[str], vocab_size: int) -> Tokenizer:
    """A little byte-level BPE tokenizer with this file's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, ANSWER, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


TOKENIZER = build_tokenizer(["what drink is order 47?", "not mentioned", "a b c d e f g h"], VOCABULARY)


def tiny_config(**changes: object) -> ModelConfig:
    """Two layers of 32; `changes` are "part__field" (encoder__pool=2) or top-level fields."""
    config = ModelConfig(
        encoder=EncoderConfig(
            num_mel_bins=80,
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            max_source_positions=96,
            context_positions=16,
        ),
        adapter=AdapterConfig(stack=4, hidden_size=24, bias=True),
        decoder=DecoderConfig(
            vocab_size=TOKENIZER.get_vocab_size(),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rope_theta=10_000.0,
        ),
        prompt=PromptConfig(before_audio=BEGIN, after_audio="{question}" + ANSWER, end_tokens=(END,)),
        sst=SSTConfig(interval=16, ratios=(2, 4, 8, 16), default_ratio=4),
        name="tiny",
    )
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            value = dataclasses.replace(getattr(config, part), **{field: value})
        config = dataclasses.replace(config, **{part: value})
    return config


def build_recognizer_tokenizer() -> Tokenizer:
    """Bytes and a few words, as Whisper's: 300 tokens, the special ones last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|nospeech|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=296, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" what is said here and there, more than once"] * 9, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


RECOGNIZER_TOKENIZER = build_recognizer_tokenizer()


def tiny_recognizer_config(**changes: object) -> ModelConfig:
    """A Whisper of one and two layers with windows of two seconds instead of an adapter; intervals stand alone."""
    end, start, language, no_speech = (
        RECOGNIZER_TOKENIZER.token_to_id(t)
        for t in ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|nospeech|>")
    )
    recognizer = RecognizerConfig(
        vocab_size=RECOGNIZER_TOKENIZER.get_vocab_size(),
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_target_positions=24,
        start_ids=(start, language),
        end_id=end,
        no_speech_id=no_speech,
        suppressed_ids=(start, language, no_speech),
        alignment_heads=((0, 1), (1, 0)),
        begin_suppressed_ids=(end,),
    )
    plain = tiny_config(encoder__context_positions=0, sst__horizon=0)
    return dataclasses.replace(plain, adapter=None, recognizer=recognizer, name="tiny words", **changes)


def tiny_model(config: ModelConfig, seed: int = 0) -> SpeechXL:
    """Weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    model = SpeechXL(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.1 if "sst_pool" in name else 0.3)  # pooled weights add up over a block
    return model.eval()


def save_checkpoint(folder: Path, config: ModelConfig, seed: int = 0) -> Path:
    """A whole checkpoint folder in our torch layout, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in tiny_model(config, seed).state_dict().items()}, folder / "model.safetensors"
    )
    save_config(config, folder)
    TOKENIZER.save(str(folder / "tokenizer.json"))
    if config.recognizer is not None:
        RECOGNIZER_TOKENIZER.save(str(folder / "recognizer_tokenizer.json"))
    return folder


def scheduler_of(config: ModelConfig, ratios: Sequence[Ratio], prefix: int = 0) -> Scheduler:
    """As a recording is heard with the checkpoint's own SSTs."""
    return Scheduler(config.sst.interval, ListedRatios(tuple(ratios)), prefix, ssts_of(config).plan, config.sst.horizon)


def pooled_of(config: ModelConfig, passed: WholePass, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What `Decoder.whole` wants of a whole pass where SSTs pool."""
    if not (config.sst.pooled and passed.ssts):
        return None
    columns = config.sst.pooling_columns(passed.pooled_ranks, passed.sst_ratios)
    return tuple(torch.from_numpy(a).expand(batch, -1, -1) for a in (passed.pooled_rows, columns))


def sound(seconds: float, seed: int = 0, rate: int = SAMPLING_RATE) -> np.ndarray:
    """(n,) float32 that changes all the time: chirps in noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    chirp = np.sin(2 * np.pi * (200 + 150 * np.sin(1.3 * t)) * t)
    return (0.3 * chirp + 0.05 * rng.standard_normal(len(t))).astype(np.float32)


def write_sound(path: Path, seconds: float, seed: int = 0, rate: int = SAMPLING_RATE) -> Path:
    sf.write(path, sound(seconds, seed, rate), rate)
    return path


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Random architectures: with and without biases, grouped or not, tied or not, several depths and clocks."""
    kv_heads = draw(st.sampled_from([1, 2]))
    ratios = draw(st.sampled_from([(2, 4), (3, 6), (1, 2, 4, 8)]))
    own = draw(st.sampled_from([True, True, False]))
    return tiny_config(
        encoder__encoder_layers=draw(st.integers(1, 2)),
        encoder__context_positions=draw(st.sampled_from([0, 8, 16])),
        encoder__num_mel_bins=draw(st.sampled_from([80, 128])),
        adapter__hidden_size=draw(st.sampled_from([None, 24])),
        decoder__num_hidden_layers=draw(st.integers(2, 3)),  # one layer of SSTs would hear nothing
        decoder__num_key_value_heads=kv_heads,
        decoder__num_attention_heads=kv_heads * draw(st.integers(1, 2)),
        decoder__attention_bias=draw(st.booleans()),
        decoder__tie_word_embeddings=draw(st.booleans()),
        prompt__before_audio=draw(st.sampled_from(["", BEGIN, BEGIN + "a b c"])),
        sst=SSTConfig(
            max(ratios) * draw(st.integers(1, 3)),
            ratios,
            ratios[0],
            output_projection=own and draw(st.booleans()),
            horizon=draw(st.sampled_from([None, None, 0, 3])),
            pooled=own and draw(st.booleans()),
            own_projections=own,
            appended=draw(st.booleans()),
        ),
    )
