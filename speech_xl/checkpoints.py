"""From a name to a checked checkpoint folder: config.json, tokenizer.json and safetensors.

Only headers of weight files are read here; no tensor is loaded and no framework is known.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from speech_xl.assembly import assembled
from speech_xl.config import ModelConfig, SSTConfig
from speech_xl.config_file import load_config
from speech_xl.errors import CheckpointError, SpeechXLError
from speech_xl.file_hashes import sha256_of
from speech_xl.hub import download

EMBEDDED, SMALL = "nano", "small"  # whole, for every machine; and by reference, for English
SHIPPED_NAMES = (SMALL, EMBEDDED)
RECOGNIZER_TOKENIZER = "recognizer_tokenizer.json"  # beside the decoder's tokenizer.json
LOW_RANK = (".lora_A", ".lora_B", ".lora_scale")  # of a difference B @ diag(scale) @ A: (r, in), (out, r) and (r,)
_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "models"  # where pyproject.toml puts checkpoints/ in the wheel
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "checkpoints"
EMBEDDED_FOLDER = SHIPPED / EMBEDDED


def resolve_checkpoint(model: str | None = None) -> Path:
    """A whole checkpoint's folder. None is the default, "small" and "nano" are the shipped ones; else a folder, or a
    Hub id to download (resumed if broken off). One that names base parts is put together in the user's cache.
    """
    if model is None:
        return resolve_default()[0]
    folder = SHIPPED / model if model in SHIPPED_NAMES else find_folder(model)
    if folder is not None:
        return whole(folder)
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"There is no checkpoint folder {model}; name a folder, {EMBEDDED!r}, or a Hub id owner/name."
        )
    return whole(download(model, allow_patterns=["*.json", "*.safetensors"]))


def resolve_default() -> tuple[Path, str | None]:
    """-> (the folder of "small", or of "nano" where its parts cannot be had, one line that says why it is nano)."""
    if not (SHIPPED / SMALL / "config.json").is_file():
        return EMBEDDED_FOLDER, None
    try:
        return resolve_checkpoint(SMALL), None
    except SpeechXLError as error:
        return (
            EMBEDDED_FOLDER,
            f"{error} Until then {EMBEDDED} answers, a far smaller model; `info {EMBEDDED_FOLDER}` says what it understands.",
        )


def whole(folder: Path) -> Path:
    """The folder itself, or what its base parts and it make together."""
    config = load_config(folder) if (folder / "config.json").is_file() else None
    return assembled(folder, config) if config is not None and config.parts else folder


def find_folder(name: str) -> Path | None:
    """The folder of that name; None for anything else, however strange."""
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError):  # too long a name, or a home folder that nobody has
        return None


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a float checkpoint of `config` holds, in `config.layout`."""
    e, a, r, d, s = config.encoder, config.adapter, config.recognizer, config.decoder, config.sst
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (e.d_model,)

    def convolution(name: str, inputs: int) -> None:
        torch_shape, mlx_shape = (e.d_model, inputs, 3), (e.d_model, 3, inputs)
        shapes[f"{name}.weight"] = torch_shape if config.layout == "torch" else mlx_shape
        shapes[f"{name}.bias"] = (e.d_model,)

    def whisper_layer(layer: str, attentions: tuple[str, ...], ffn_dim: int) -> None:
        for part in attentions:
            norm(f"{layer}.{part}_layer_norm")
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{layer}.{part}.{name}", e.d_model, e.d_model, bias=name != "k_proj")
        norm(f"{layer}.final_layer_norm")
        linear(f"{layer}.fc1", e.d_model, ffn_dim, bias=True)
        linear(f"{layer}.fc2", ffn_dim, e.d_model, bias=True)

    convolution("speech.encoder.conv1", e.num_mel_bins)
    convolution("speech.encoder.conv2", e.d_model)
    shapes["speech.encoder.embed_positions.weight"] = (e.max_source_positions, e.d_model)
    for i in range(e.encoder_layers):
        whisper_layer(f"speech.encoder.layers.{i}", ("self_attn",), e.encoder_ffn_dim)
    norm("speech.encoder.layer_norm")
    if a is not None:
        linear("speech.adapter.linear_1", e.d_model * a.stack, a.hidden_size or d.hidden_size, a.bias)
        if a.hidden_size is not None:
            linear("speech.adapter.linear_2", a.hidden_size, d.hidden_size, a.bias)
    if r is not None:
        shapes["speech.recognizer.embed_tokens.weight"] = (r.vocab_size, e.d_model)
        shapes["speech.recognizer.embed_positions.weight"] = (r.max_target_positions, e.d_model)
        for i in range(r.decoder_layers):
            whisper_layer(f"speech.recognizer.layers.{i}", ("self_attn", "encoder_attn"), r.decoder_ffn_dim)
        norm("speech.recognizer.layer_norm")

    queries, keys = d.num_attention_heads * d.head_dim, d.num_key_value_heads * d.head_dim
    shapes["decoder.embed_tokens.weight"] = (d.vocab_size, d.hidden_size)
    for i in range(d.num_hidden_layers):
        layer = f"decoder.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (d.hidden_size,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (d.hidden_size,)
        for prefix in ("", "sst_") if s is not None and s.own_projections else ("",):
            linear(f"{layer}.self_attn.{prefix}q_proj", d.hidden_size, queries, d.attention_bias)
            linear(f"{layer}.self_attn.{prefix}k_proj", d.hidden_size, keys, d.attention_bias)
            linear(f"{layer}.self_attn.{prefix}v_proj", d.hidden_size, keys, d.attention_bias)
            if not prefix or (s is not None and s.output_projection):
                linear(f"{layer}.self_attn.{prefix}o_proj", queries, d.hidden_size, d.attention_output_bias)
        for name in ("gate_proj", "up_proj"):
            linear(f"{layer}.mlp.{name}", d.hidden_size, d.intermediate_size, d.mlp_bias)
        linear(f"{layer}.mlp.down_proj", d.intermediate_size, d.hidden_size, d.mlp_bias)
        if s is not None and s.pooled:
            shapes[f"{layer}.self_attn.sst_pool"] = (2, d.num_key_value_heads, sum(s.ratios))
    shapes["decoder.norm.weight"] = (d.hidden_size,)
    if not d.tie_word_embeddings:
        shapes["decoder.lm_head.weight"] = (d.vocab_size, d.hidden_size)
    if s is not None:
        shapes["decoder.sst_embedding"] = (d.hidden_size,)
    return shapes


def packed_tensors(name: str, shape: tuple[int, ...], group_size: int, bits: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the three tensors that MLX's quantization makes of a weight (out, in)."""
    layer, (rows, numbers) = name.removesuffix(".weight"), shape
    groups = (rows, numbers // group_size)
    return {name: (rows, numbers * bits // 32), f"{layer}.scales": groups, f"{layer}.biases": groups}


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the folder's safetensors files, from their headers."""
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder} holds no *.safetensors; copy or convert the checkpoint again.")
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); copy or download it again.") from error
    return found


def base_name(name: str, sst: SSTConfig | None) -> str | None:
    """Our name of the tensor that a trained one started from; None: it started at zero.

    An SST projection starts as the plain one, but keys and values of SSTs that pool start at zero beside the pool.
    """
    if sst is not None and sst.pooled and re.search(r"\.sst_[kv]_proj\.", name):
        return None
    return name.replace(".self_attn.sst_", ".self_attn.")


def by_reference(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What a checkpoint that stores `found` beside its base parts must hold: whole tensors, and the factors of differences."""
    shapes = {name: shape for name, shape in expected.items() if name in found}
    for name, shape in expected.items():
        narrow, long, scale = (name + ending for ending in LOW_RANK)
        stored = found.get(narrow) or found.get(long, ())[::-1] or found.get(scale)
        if stored and len(shape) == 2:
            rank = stored[0]
            shapes |= {narrow: (rank, shape[1]), long: (shape[0], rank), scale: (rank,)}
    return shapes


def check_checkpoint(folder: Path) -> ModelConfig:
    """The checked configuration of a folder; CheckpointError names a missing, misshapen or unknown tensor."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}; train it or name another model.")
    config = load_config(folder)
    found, expected = stored_shapes(folder), expected_tensors(config)
    if config.parts:
        expected = by_reference(found, expected)
    if config.quantization is not None:
        for name, shape in list(expected.items()):
            if f"{name.removesuffix('.weight')}.scales" in found:
                expected |= packed_tensors(name, shape, **config.quantization)
    if unknown := sorted(set(found) - set(expected)):
        raise CheckpointError(
            f"{folder} has a tensor {unknown[0]} that config.json has no place for; copy or convert the checkpoint again."
        )
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"{folder} lacks the tensor {name}; copy or convert the checkpoint again.")
        if found[name] != shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has shape {list(found[name])} where config.json needs {list(shape)}; "
                "copy or convert the checkpoint again."
            )
    return config


def fingerprint(folder: Path) -> str:
    """sha256 over config.json and all weights: memories belong to exactly one of these."""
    total = hashlib.sha256()
    for path in sorted([*Path(folder).glob("*.safetensors"), Path(folder) / "config.json"]):
        total.update(json.dumps([path.name, sha256_of(path)]).encode())
    return total.hexdigest()
