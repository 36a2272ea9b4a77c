"""What may stand together in a model's configuration: every contradiction is a sentence that names the field.

It knows a configuration's values, no files and no weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from speech_xl.errors import CheckpointError

if TYPE_CHECKING:
    from speech_xl.config import EncoderConfig, ModelConfig, RecognizerConfig

MOST_LAYERS, LARGEST_SIZE = 1024, 2**31 - 1  # so that a damaged number is refused before anything is made of it
LARGEST_NUMBER = 1e30  # that float32 can calculate with
DTYPES = ("float32", "float16", "bfloat16")
LONGEST_SHOWN = 60  # characters of a wrong value
LAYOUTS = ("torch", "mlx")  # axis order of stored convolutions: (out, in, kernel) or (out, kernel, in)


def check(config: ModelConfig) -> None:
    """Raise CheckpointError, naming the field, if the configuration contradicts itself."""
    _check_types(config)
    e, a, r, d, s = config.encoder, config.adapter, config.recognizer, config.decoder, config.sst

    def require(holds: bool, sentence: str) -> None:
        if not holds:
            raise CheckpointError(f"config.json: {sentence}.")

    require((a is None) != (r is None), "there must be an adapter or a recognizer, and not both")
    for part in (e, a, r, d):
        for f in dataclasses.fields(part) if part is not None else ():
            value = getattr(part, f.name)
            if f.type not in ("int", "int | None") or value is None:
                continue
            least = 0 if f.name in ("context_positions", "end_id", "no_speech_id", "previous_id") else 1
            most = MOST_LAYERS if f.name.endswith("_layers") else LARGEST_SIZE
            require(value >= least, f"{f.name} must be a whole number from {least}, not {value}")
            require(value <= most, f"{f.name} {value} is more than any model has, which is {most}")
    for name in ("rope_theta", "rms_norm_eps"):
        require(getattr(d, name) > 0, f"{name} must be more than 0, not {getattr(d, name)}")
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
        all(0 <= i < d.num_hidden_layers for i in config.evidence_layers),
        "evidence_layers must be decoder layers",
    )
    require("{question}" in config.prompt.after_audio, "prompt.after_audio must contain {question}")
    require(config.dtype in DTYPES, f"dtype must be {', '.join(DTYPES)}, not {config.dtype!r}")
    require(config.layout in LAYOUTS, f"layout must be {' or '.join(LAYOUTS)}, not {config.layout!r}")
    q = config.quantization
    require(
        q is None or (set(q) == {"group_size", "bits"} and q["bits"] in (4, 8) and q["group_size"] in (32, 64, 128)),
        "quantization must have a group_size of 32, 64 or 128 and bits of 4 or 8",
    )
    if s is not None:
        require(bool(s.ratios) and all(r >= 1 for r in s.ratios), "sst.ratios must be whole numbers from 1")
        require(s.default_ratio in s.ratios, "sst.default_ratio must be one of sst.ratios")
        require(1 <= s.interval <= LARGEST_SIZE, f"sst.interval must be from 1 to {LARGEST_SIZE}, not {s.interval}")
        require(s.horizon is None or s.horizon >= 0, f"sst.horizon must be a whole number from 0, not {s.horizon}")
        for ratio in s.ratios:
            require(s.interval % ratio == 0, f"sst.interval {s.interval} must be a multiple of ratio {ratio}")
        require(
            s.own_projections or not (s.output_projection or s.pooled),
            "sst.output_projection and sst.pooled need sst.own_projections",
        )
        require(s.recall >= 0, f"sst.recall must be a whole number from 0, not {s.recall}")
        require(not s.recall or r is not None, "sst.recall needs a recognizer: only then are speech tokens words")


def _check_recognizer(r: RecognizerConfig, e: EncoderConfig, require: Callable[[bool, str], None]) -> None:
    """The part of `check` that concerns a recogniser."""
    require(e.pool == 1 and not e.context_positions, "a recognizer reads whole windows: no pool, no context_positions")
    require(e.d_model % r.decoder_attention_heads == 0, "d_model must be a multiple of decoder_attention_heads")
    ids = (*r.start_ids, *r.suppressed_ids, *r.begin_suppressed_ids, r.end_id, r.no_speech_id)
    ids = ids if r.previous_id is None else (*ids, r.previous_id)
    require(all(0 <= i < r.vocab_size for i in ids), "the recognizer's ids must lie below its vocab_size")
    require(
        0 < len(r.start_ids) < r.max_target_positions,
        "recognizer.start_ids must hold some ids, and leave room for text",
    )
    require(r.end_id not in r.suppressed_ids, "recognizer.suppressed_ids must not contain end_id")
    require(
        bool(r.alignment_heads)
        and all(a in range(r.decoder_layers) and b in range(r.decoder_attention_heads) for a, b in r.alignment_heads),
        "recognizer.alignment_heads must be pairs of a layer and a head",
    )


def _check_types(made: Any, where: str = "") -> None:
    """That every field holds what its annotation says, at any depth: JSON may hold anything."""
    for name, kind in get_type_hints(type(made)).items():
        value = getattr(made, name)
        if not _fits(value, kind):
            said = repr(value)
            said = said if len(said) <= LONGEST_SHOWN else f"{said[:LONGEST_SHOWN]} ..."
            raise CheckpointError(f"config.json: {where}{name} must be {_in_words(kind)}, not {said}.")
        if dataclasses.is_dataclass(value):
            _check_types(value, f"{name}.")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that a configuration's field may have."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_fits(value, one) for one in inside)
    if origin is tuple:
        kinds = [inside[0]] * len(value) if inside[-1] is ... and isinstance(value, tuple) else inside
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inside[0]) and _fits(v, inside[1]) for k, v in value.items())
    if kind is float:
        return type(value) in (int, float) and abs(value) < LARGEST_NUMBER  # false for NaN and infinity
    if kind is str:  # tokenizers and files take no half characters
        return type(value) is str and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))
    return type(value) is kind  # True is no number


def _in_words(kind: Any) -> str:
    """A type as somebody who writes JSON knows it."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(map(_in_words, inside))
    if origin is tuple:
        return f"a list, each of it {_in_words(inside[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
    return names.get(kind, "an object")
