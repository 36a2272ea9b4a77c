"""A Whisper encoder joined to a Qwen2 or Qwen2.5 decoder by a fresh adapter: where training starts.

Two published models come in, one network that nobody has trained yet comes out. It knows transformers'
names for both, no files and no tensors.
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

STACKS = (4, 5, 3, 2, 1)  # positions per speech token: 80 ms each, where the window divides so

# The two sources' tensors are told apart by these prefixes, which the reader of the folders puts in front.
SPEECH, TEXT = "whisper:", "decoder:"


def translate(config: Json, stored: frozenset[str]) -> ModelConfig:
    """`config` holds both configurations, as audio_config and text_config."""
    whisper, text = section(config, "audio_config"), section(config, "text_config")
    require(whisper.get("model_type") == "whisper", f"{whisper.get('model_type')} is not a Whisper model")
    encoder = whisper_encoder(whisper)
    stack = next(s for s in STACKS if encoder.max_source_positions % s == 0)
    return ModelConfig(
        encoder=encoder,
        adapter=AdapterConfig(stack=stack, hidden_size=field(text, "hidden_size"), bias=True),
        decoder=text_decoder(text, is_tied((text,), frozenset(n for n in stored if n.startswith(TEXT)))),
        description="Nothing yet: its adapter is freshly initialised and waits for training.",
    )


FAMILY = Family(
    name="Whisper + Qwen2",
    translate=translate,
    names=(
        (rf"{SPEECH}(?:model\.)?encoder\.{ENCODER}", r"speech.encoder.\1", rf"{SPEECH}model.encoder.\1"),
        (rf"{TEXT}lm_head\.weight", "decoder.lm_head.weight", f"{TEXT}lm_head.weight"),
        (rf"{TEXT}(?:model\.)?{DECODER}", r"decoder.\1", rf"{TEXT}model.\1"),
    ),
    unused=(
        (rf"{SPEECH}(?:model\.)?decoder\..*|{SPEECH}proj_out\..*", "Whisper's own decoder, which Qwen2 replaces"),
        (r".*rotary_emb\.inv_freq", "a table that is computed here"),
    ),
    template=(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|AUDIO|>\n"
        "{question}<|im_end|>\n<|im_start|>assistant\n"
    ),
    audio_mark="<|AUDIO|>",
    end_tokens=("<|im_end|>", "<|endoftext|>"),
)
