"""Qwen2-Audio (arXiv 2407.10759): Whisper encoder that averages pairs, one linear layer, Qwen2-type decoder.

It knows transformers' names for this model, no files and no tensors.
"""

from __future__ import annotations

import dataclasses

from converters.family import DECODER, ENCODER, Family, Json, is_tied, section, text_decoder, whisper_encoder
from speech_xl.config import AdapterConfig, ModelConfig

QWEN2_DEFAULTS = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
ENCODER_DEFAULTS = {
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "max_source_positions": 1500,
}


def translate(config: Json, stored: frozenset[str]) -> ModelConfig:
    """Qwen2-Audio's config.json, and the names of its tensors, as our configuration."""
    text = QWEN2_DEFAULTS | section(config, "text_config")
    encoder = whisper_encoder(ENCODER_DEFAULTS | section(config, "audio_config"), pool=2, mask_padding=True)
    return ModelConfig(
        encoder=dataclasses.replace(encoder, whole_pools=True),
        adapter=AdapterConfig(stack=1, hidden_size=None, bias=True),
        decoder=text_decoder(text, is_tied((config, text), stored)),
        description="Speech and sounds, in many languages.",
    )


FAMILY = Family(
    name="Qwen2-Audio",
    translate=translate,
    names=(
        (rf"(?:model\.)?audio_tower\.{ENCODER}", r"speech.encoder.\1", r"audio_tower.\1"),
        (
            r"(?:model\.)?multi_modal_projector\.linear\.(weight|bias)",
            r"speech.adapter.linear_1.\1",
            r"multi_modal_projector.linear.\1",
        ),
        (r"(?:language_model\.)?lm_head\.weight", "decoder.lm_head.weight", "language_model.lm_head.weight"),
        (rf"(?:model\.)?language_model\.(?:model\.)?{DECODER}", r"decoder.\1", r"language_model.model.\1"),
    ),
    unused=((r".*rotary_emb\.inv_freq", "a table that is computed here"),),
    template=(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n"
        "{question}<|im_end|>\n<|im_start|>assistant\n"
    ),
    audio_mark="<|AUDIO|>",
    end_tokens=("<|im_end|>", "<|endoftext|>"),
)
