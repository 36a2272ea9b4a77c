"""What may stand together in a model's configuration: every contradiction is a sentence that names the field.

It knows a configuration's values, no files and no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from speech_xl.errors import CheckpointError

if TYPE_CHECKING:
    from speech_xl.config import EncoderConfig, ModelConfig, RecognizerConfig

MOST_LAYERS, LARGEST_SIZE = 1024, 2**31 - 1  # so that a damaged number is refused before anything is made of it
LAYOUTS = ("torch", "mlx")  # axis order of stored convolutions: (out, in, kernel) or (out, kernel, in)


def check(config: ModelConfig) -> None:
    """Raise CheckpointError, naming the field, if the configuration contradicts itself."""
    e, a, r, d, s = config.encoder, config.adapter, config.recognizer, config.decoder, config.sst

    def require(holds: bool, sentence: str) -> None:
        if not holds:
            raise CheckpointError(f"config.json: {sentence}.")

    require((a is None) != (r is None), "there must be an adapter or a recognizer, and not both")
    for part in (e, a, r, d):
        for f in dataclasses.fields(part) if part is not None else ():
            value = getattr(part, f.name)
            least = 0 if f.name in ("context_positions", "end_id", "no_speech_id") else 1
            if f.type == "int" and (type(value) is not int or value < least):
                raise CheckpointError(f"config.json: {f.name} must be a whole number from {least}, not {value!r}.")
            most = MOST_LAYERS if f.name.endswith("_layers") else LARGEST_SIZE
            require(f.type != "int" or value <= most, f"{f.name} {value} is more than any model has, which is {most}")
    require(e.d_model % e.encoder_attention_heads == 0, "d_model must be a multiple of encoder_attention_heads")
    require(2 * e.context_positions < e.max_source_positions, "context_positions leaves nothing of a window")
    require(
        a is None or (e.hop_frames % config.frames_per_token == 0 and e.context_frames % config.frames_per_token == 0),
        f"a window of {e.hop_frames} frames and its context of {e.context_frames} must be multiples of the "
        "frames of one speech token",
    )
    if r is not None:
        _check_recognizer(r, e, require)
    require(
        d.num_attention_heads % d.num_key_value_heads == 0,
        "num_attention_heads must be a multiple of num_key_value_heads",
    )
    require(d.head_dim % 2 == 0, "head_dim must be even, as RoPE rotates pairs")
    require(
        all(type(i) is int and 0 <= i < d.num_hidden_layers for i in config.evidence_layers),
        "evidence_layers must be decoder layers",
    )
    require("{question}" in config.prompt.after_audio, "prompt.after_audio must contain {question}")
    require(config.layout in LAYOUTS, f"layout must be {' or '.join(LAYOUTS)}, not {config.layout!r}")
    q = config.quantization
    require(
        q is None or (set(q) == {"group_size", "bits"} and q["bits"] in (4, 8) and q["group_size"] in (32, 64, 128)),
        "quantization must have a group_size of 32, 64 or 128 and bits of 4 or 8",
    )
    if s is not None:
        require(bool(s.ratios) and all(type(r) is int and r >= 1 for r in s.ratios), "sst.ratios must be whole numbers")
        require(s.default_ratio in s.ratios, "sst.default_ratio must be one of sst.ratios")
        require(s.interval >= 1, "sst.interval must be positive")
        for ratio in s.ratios:
            require(s.interval % ratio == 0, f"sst.interval {s.interval} must be a multiple of ratio {ratio}")
        require(
            s.own_projections or not (s.output_projection or s.pooled),
            "sst.output_projection and sst.pooled need sst.own_projections",
        )
        require(type(s.recall) is int and s.recall >= 0, f"sst.recall must be a whole number from 0, not {s.recall!r}")
        require(not s.recall or r is not None, "sst.recall needs a recognizer: only then are speech tokens words")


def _check_recognizer(r: RecognizerConfig, e: EncoderConfig, require: Callable[[bool, str], None]) -> None:
    """The part of `check` that concerns a recogniser."""
    require(e.pool == 1 and not e.context_positions, "a recognizer reads whole windows: no pool, no context_positions")
    require(e.d_model % r.decoder_attention_heads == 0, "d_model must be a multiple of decoder_attention_heads")
    ids = (*r.start_ids, *r.suppressed_ids, *r.begin_suppressed_ids, r.end_id, r.no_speech_id)
    ids = ids if r.previous_id is None else (*ids, r.previous_id)
    require(
        all(type(i) is int and 0 <= i < r.vocab_size for i in ids), "the recognizer's ids must lie below its vocab_size"
    )
    require(
        0 < len(r.start_ids) < r.max_target_positions,
        "recognizer.start_ids must hold some ids, and leave room for text",
    )
    require(r.end_id not in r.suppressed_ids, "recognizer.suppressed_ids must not contain end_id")
    heads = [pair for pair in r.alignment_heads if isinstance(pair, tuple) and len(pair) == 2]
    require(
        0 < len(heads) == len(r.alignment_heads)
        and all(a in range(r.decoder_layers) and b in range(r.decoder_attention_heads) for a, b in heads),
        "recognizer.alignment_heads must be pairs of a layer and a head",
    )
