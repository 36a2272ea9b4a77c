"""Whisper's own text decoder kept as a recogniser: its settings for English words without timestamps.

What is said follows Whisper's paper (arXiv 2212.04356, section 2.3) and its published tokenizer. It knows ids and
tokens, no tensors and no files.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from converters.family import Json, field, require
from speech_xl.config import RecognizerConfig
from speech_xl.errors import CheckpointError

LANGUAGE = "<|en|>"
MULTILINGUAL = 51_865  # tokens, from here on; the English-only models have one less
# (decoder layers, heads, vocabulary) -> heads that follow the sound, as published in openai/whisper's __init__.py
ALIGNMENT_HEADS = {(6, 8, 51_865): ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6))}


def recognizer_config(whisper: Json, generation: Json, tokenizer: Tokenizer | None) -> RecognizerConfig:
    """From Whisper's config, its generation_config (empty where there is none) and its tokenizer."""
    if tokenizer is None:
        raise CheckpointError(
            "This checkpoint cannot be converted: a recognizer needs Whisper's tokenizer.json beside its weights."
        )
    size = field(whisper, "vocab_size")
    layers, heads = field(whisper, "decoder_layers"), field(whisper, "decoder_attention_heads")

    def number(*tokens: str) -> int:
        found = [i for token in tokens if (i := tokenizer.token_to_id(token)) is not None and i < size]
        require(bool(found), f"Whisper's tokenizer has no {tokens[0]}")
        return found[0]

    end = number("<|endoftext|>")
    start = [number("<|startoftranscript|>")]
    if generation.get("is_multilingual", size >= MULTILINGUAL):
        start += [number(LANGUAGE), number("<|transcribe|>")]
    start.append(number("<|notimestamps|>"))
    # Timestamps have ids behind the tokenizer's own where it does not list them.
    special = {*tokenizer.get_added_tokens_decoder(), *range(tokenizer.get_vocab_size(), size)}
    listed = {i for i in generation.get("suppress_tokens") or () if i >= 0}  # -1 stands for the list itself
    default = tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
    blank = tokenizer.token_to_id("Ġ")  # Whisper never starts with a blank or the end
    first = generation.get("begin_suppress_tokens") or [i for i in (blank, end) if i is not None]
    published = ALIGNMENT_HEADS.get((layers, heads, size), default)
    return RecognizerConfig(
        vocab_size=size,
        decoder_layers=layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=field(whisper, "decoder_ffn_dim"),
        max_target_positions=field(whisper, "max_target_positions", default=448),
        start_ids=tuple(start),
        end_id=end,
        no_speech_id=number("<|nospeech|>", "<|nocaptions|>"),
        suppressed_ids=tuple(sorted((special | listed) - {end})),
        begin_suppressed_ids=tuple(i for i in first if i < size),
        previous_id=tokenizer.token_to_id("<|startofprev|>"),
        alignment_heads=tuple(tuple(pair) for pair in generation.get("alignment_heads") or published),
    )
