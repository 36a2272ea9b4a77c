"""Voxtral (arXiv 2507.13264): Whisper-large-v3's encoder, stacks of four through an MLP, Llama-type decoder.

It knows transformers' names for this model, no files and no tensors.
"""

from __future__ import annotations

from converters.family import (
    DECODER,
    ENCODER,
    Family,
    Json,
    field,
    is_tied,
    require,
    section,
    text_decoder,
    whisper_encoder,
)
from speech_xl.config import AdapterConfig, ModelConfig

LLAMA_DEFAULTS = {
    "model_type": "llama",
    "vocab_size": 131_072,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072,
}
ENCODER_DEFAULTS = {
    "num_mel_bins": 128,
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "intermediate_size": 5120,
    "max_source_positions": 1500,
}


def translate(config: Json, stored: frozenset[str]) -> ModelConfig:
    """Voxtral's config.json, and the names of its tensors, as our configuration; CheckpointError for a variant we lack."""
    text = LLAMA_DEFAULTS | section(config, "text_config")
    if not text.get("rope_parameters"):
        text = {"rope_theta": 100_000_000.0} | text
    encoder = whisper_encoder(ENCODER_DEFAULTS | section(config, "audio_config"), keep_padding=True)
    activation = field(config, "projector_hidden_act", default="gelu")
    require(activation == "gelu", f"its adapter uses {activation} where this network has gelu")
    require(
        encoder.encoder_ffn_dim % encoder.d_model == 0,
        f"its adapter joins {encoder.encoder_ffn_dim} / {encoder.d_model} positions, which is no whole number",
    )
    return ModelConfig(
        encoder=encoder,
        adapter=AdapterConfig(encoder.encoder_ffn_dim // encoder.d_model, field(text, "hidden_size"), bias=False),
        decoder=text_decoder(text, is_tied((config, text), stored)),
        description="Speech, in many languages.",
    )


FAMILY = Family(
    name="Voxtral",
    translate=translate,
    names=(
        (rf"(?:model\.)?audio_tower\.{ENCODER}", r"speech.encoder.\1", r"audio_tower.\1"),
        (
            r"(?:model\.)?multi_modal_projector\.(linear_[12])\.weight",
            r"speech.adapter.\1.weight",
            r"multi_modal_projector.\1.weight",
        ),
        (r"(?:language_model\.)?lm_head\.weight", "decoder.lm_head.weight", "language_model.lm_head.weight"),
        (rf"(?:model\.)?language_model\.(?:model\.)?{DECODER}", r"decoder.\1", r"language_model.model.\1"),
    ),
    unused=((r".*rotary_emb\.inv_freq", "a table that is computed here"),),
    template="<s>[INST][BEGIN_AUDIO][AUDIO]{question}[/INST]",
    audio_mark="[AUDIO]",
    end_tokens=("</s>",),
)
