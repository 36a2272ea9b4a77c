"""A Whisper model joined to a Qwen2 or Llama decoder: where training starts.

Two published models come in, one network that nobody has trained yet comes out. Speech tokens come from a fresh
adapter behind the encoder, or from the words that Whisper's own decoder recognises. It knows transformers'
names for both, no files and no tensors.
"""

from __future__ import annotations

from dataclasses import replace

from converters.family import (
    DECODER,
    ENCODER,
    Family,
    Json,
    field,
    is_tied,
    section,
    text_decoder,
    whisper_encoder,
)
from speech_xl.config import AdapterConfig, DecoderConfig, ModelConfig

STACKS = (4, 5, 3, 2, 1)  # positions per speech token: 80 ms each, where the window divides so

# The two sources' tensors are told apart by these prefixes, which the reader of the folders puts in front.
SPEECH, TEXT = "whisper:", "decoder:"


def translate(config: Json, stored: frozenset[str]) -> ModelConfig:
    """`config` holds both configurations, as audio_config and text_config."""
    encoder, text = whisper_encoder(section(config, "audio_config")), section(config, "text_config")
    stack = next((s for s in STACKS if encoder.max_source_positions % s == 0), 1)
    return ModelConfig(
        encoder=encoder,
        adapter=AdapterConfig(stack=stack, hidden_size=field(text, "hidden_size"), bias=True),
        decoder=joined_decoder(text, stored),
        description="Nothing yet: its adapter is freshly initialised and waits for training.",
    )


def translate_with_recognizer(config: Json, stored: frozenset[str]) -> ModelConfig:
    """The same, with a RecognizerConfig as `recognizer`."""
    return ModelConfig(
        encoder=whisper_encoder(section(config, "audio_config")),
        recognizer=config["recognizer"],
        decoder=joined_decoder(section(config, "text_config"), stored),
        description="English speech, of which its decoder reads the recognised words; it waits for training.",
    )


def joined_decoder(text: Json, stored: frozenset[str]) -> DecoderConfig:
    """The decoder's configuration of a joined source."""
    return text_decoder(text, is_tied((text,), frozenset(n for n in stored if n.startswith(TEXT))))


NAMES = (
    (rf"{SPEECH}(?:model\.)?encoder\.{ENCODER}", r"speech.encoder.\1", rf"{SPEECH}model.encoder.\1"),
    (rf"{TEXT}lm_head\.weight", "decoder.lm_head.weight", f"{TEXT}lm_head.weight"),
    (rf"{TEXT}(?:model\.)?{DECODER}", r"decoder.\1", rf"{TEXT}model.\1"),
)
RECOGNIZER = r"(embed_tokens\.weight|embed_positions\.weight|layers\..+|layer_norm\..+)"
TABLE = (r".*rotary_emb\.inv_freq", "a table that is computed here")

FAMILY = Family(
    name="Whisper + Qwen2",
    translate=translate,
    names=NAMES,
    unused=(
        (
            rf"{SPEECH}(?:model\.)?decoder\..*|{SPEECH}proj_out\..*",
            "Whisper's own decoder, which the other one replaces",
        ),
        TABLE,
    ),
    template=(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|AUDIO|>\n"
        "{question}<|im_end|>\n<|im_start|>assistant\n"
    ),
    audio_mark="<|AUDIO|>",
    end_tokens=("<|im_end|>", "<|endoftext|>"),
)

WITH_RECOGNIZER = replace(
    FAMILY,
    name="Whisper with its recognizer + Qwen2",
    translate=translate_with_recognizer,
    names=(
        *NAMES,
        (rf"{SPEECH}(?:model\.)?decoder\.{RECOGNIZER}", r"speech.recognizer.\1", rf"{SPEECH}model.decoder.\1"),
    ),
    unused=((rf"{SPEECH}proj_out\..*", "the same as Whisper's token embedding"), TABLE),
)
