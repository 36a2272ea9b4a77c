"""What a foreign format is: a translation of its config.json, a table of tensor names, and its prompt.

Shared by the files of this package that describe one format each. It knows dictionaries and strings only;
it opens no files and holds no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speech_xl.config import DecoderConfig, EncoderConfig, ModelConfig
from speech_xl.errors import CheckpointError

Json = dict[str, Any]
# (regular expression for their whole name, our name, their name as transformers saves it); first match counts
NameMap = tuple[tuple[str, str, str], ...]
Reasons = tuple[tuple[str, str], ...]  # (regular expression for their whole name, why we leave it out)

ENCODER = r"(conv[12]\..+|embed_positions\.weight|layers\..+|layer_norm\..+)"
DECODER = r"(embed_tokens\.weight|layers\..+|norm\.weight)"
NO_REASON = "no part of this architecture"


@dataclass(frozen=True)
class Family:
    """One supported format.

    `translate` takes the parsed config.json and the source's tensor names. `template` is the prompt
    of folders that bring no chat template; `audio_mark` is what a prompt has where the audio goes.
    """

    name: str
    translate: Callable[[Json, frozenset[str]], ModelConfig]
    names: NameMap
    unused: Reasons
    template: str
    audio_mark: str
    end_tokens: tuple[str, ...]

    def ours(self, name: str) -> str | None:
        """Our name of their tensor; None if it is not used."""
        if self.why_unused(name) != NO_REASON:
            return None
        for pattern, replacement, _ in self.names:
            if match := re.fullmatch(pattern, name):
                return match.expand(replacement)
        return None

    def theirs(self, name: str) -> str:
        """What a source should have called our tensor."""
        for _, ours, theirs in self.names:
            pattern = "(.+)".join(re.escape(part) for part in ours.split(r"\1"))
            if match := re.fullmatch(pattern, name):
                return match.expand(theirs)
        return name

    def why_unused(self, name: str) -> str:
        """Why a tensor of that name is left out, as the summary says it."""
        return next((why for pattern, why in self.unused if re.fullmatch(pattern, name)), NO_REASON)


def require(holds: bool, sentence: str) -> None:
    """CheckpointError with that sentence unless the condition holds."""
    if not holds:
        raise CheckpointError(f"This checkpoint cannot be converted: {sentence}.")


def section(config: Json, name: str) -> Json:
    """A nested object of a foreign config.json."""
    require(isinstance(config.get(name), dict), f"its config.json has no {name}")
    return config[name]


def field(config: Json, *names: str, default: Any = None) -> Any:
    """The first of `names` that the configuration has; without a default one of them must be there."""
    for name in names:
        if config.get(name) is not None:
            return config[name]
    require(default is not None, f"its config.json lacks {names[0]}")
    return default


def whisper_encoder(config: Json, **changes: Any) -> EncoderConfig:
    """Whisper's own field names, or the general ones that Voxtral uses."""
    activation = field(config, "activation_function", default="gelu")
    require(activation == "gelu", f"its encoder uses {activation} where this network has gelu")
    return EncoderConfig(
        num_mel_bins=field(config, "num_mel_bins"),
        d_model=field(config, "d_model", "hidden_size"),
        encoder_layers=field(config, "encoder_layers", "num_hidden_layers"),
        encoder_attention_heads=field(config, "encoder_attention_heads", "num_attention_heads"),
        encoder_ffn_dim=field(config, "encoder_ffn_dim", "intermediate_size"),
        max_source_positions=field(config, "max_source_positions", default=1500),
        **changes,
    )


def text_decoder(config: Json, tied: bool) -> DecoderConfig:
    """A Qwen2, Llama or Mistral configuration."""
    kind = config.get("model_type", "unnamed")
    require(kind in ("qwen2", "llama", "mistral"), f"its decoder is of type {kind}; qwen2, llama and mistral are known")
    activation = field(config, "hidden_act", default="silu")
    require(activation == "silu", f"its decoder uses {activation} where this network has silu")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    require(rope_type == "default", f"its decoder scales rotary positions by {rope_type}, which is not supported")
    require(float(rope.get("partial_rotary_factor", 1.0)) == 1.0, "its decoder rotates only a part of each head")
    sliding = config.get("sliding_window") if config.get("use_sliding_window", kind == "mistral") else None
    require(sliding is None, "its decoder attends in a sliding window, which is not supported")
    layers = config.get("layer_types") or ()
    require(all(kind == "full_attention" for kind in layers), "some layers of its decoder attend to a part only")
    theta = float(rope.get("rope_theta") or field(config, "rope_theta", default=10_000.0))
    epsilon = float(field(config, "rms_norm_eps", default=1e-6))
    for name, number in (("rope_theta", theta), ("rms_norm_eps", epsilon)):
        require(0 < number < math.inf, f"its {name} is {number} where a positive number belongs")
    heads, width = field(config, "num_attention_heads"), field(config, "hidden_size")
    biased = kind == "qwen2" or bool(config.get("attention_bias", False))
    return DecoderConfig(
        vocab_size=field(config, "vocab_size"),
        hidden_size=width,
        intermediate_size=field(config, "intermediate_size"),
        num_hidden_layers=field(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=field(config, "num_key_value_heads", default=heads),
        head_dim=field(config, "head_dim", default=width // heads),
        rope_theta=theta,
        rms_norm_eps=epsilon,
        attention_bias=biased,
        attention_output_bias=biased and kind != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
        tie_word_embeddings=tied,
        max_position_embeddings=field(config, "max_position_embeddings", default=32_768),
    )


def is_tied(configs: tuple[Json, ...], stored: frozenset[str]) -> bool:
    """Embeddings serve as the head where a configuration says so and no head of its own is stored."""
    has_head = any(name.endswith("lm_head.weight") for name in stored)
    return not has_head and any(config.get("tie_word_embeddings", False) for config in configs)
