"""From a name to a checked checkpoint folder: config.json, tokenizer.json and safetensors.

Only headers of weight files are read here; no tensor is loaded and no framework is known.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError, safe_open

from speech_xl.config import ModelConfig, load_config
from speech_xl.errors import CheckpointError

EMBEDDED = "nano"
EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / "checkpoints" / EMBEDDED


def resolve_checkpoint(model: str | None = None) -> Path:
    """None or "nano" is the embedded model; else a folder, or a Hub id to download (resumed if broken off)."""
    if model is None or model == EMBEDDED:
        return EMBEDDED_FOLDER
    folder = find_folder(model)
    if folder is not None:
        return folder
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"There is no checkpoint folder {model}; name a folder, {EMBEDDED!r}, or a Hub id owner/name."
        )
    return download(model, allow_patterns=["*.json", "*.safetensors"])


def find_folder(name: str) -> Path | None:
    """The folder of that name; None for anything else, however strange."""
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError):  # too long a name, or a home folder that nobody has
        return None


def download(name: str, revision: str | None = None, **patterns: list[str]) -> Path:
    """The snapshot of a Hub id (resumed if broken off); CheckpointError says why there is none."""
    client = hub_client()
    try:
        return Path(client.snapshot_download(name, revision=revision, **patterns))
    except client.errors.HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a valid Hub id ({error}).") from None
    except hub_errors() as error:
        raise CheckpointError(describe_hub_error(name, revision, error)) from None


def hub_client() -> ModuleType:
    """huggingface_hub, which reads HF_ENDPOINT when it is loaded; CheckpointError if that is no address at all."""
    import huggingface_hub
    import huggingface_hub.errors

    try:
        _ = huggingface_hub.snapshot_download, huggingface_hub.HfApi  # loads the parts that talk
    except ValueError as error:
        raise CheckpointError(f"HF_ENDPOINT is no web address ({error}); correct it or unset it.") from None
    return huggingface_hub


def hub_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises for networks and answers of every kind; its own errors are OSErrors or HTTPErrors."""
    from huggingface_hub.utils import httpx  # the HTTP library of this version of the client, whatever its name

    strange_answers = (ValueError, LookupError, AssertionError, RuntimeError)
    return httpx.HTTPError, httpx.InvalidURL, OSError, *strange_answers


def describe_hub_error(name: str, revision: str | None, error: Exception) -> str:
    """Why there is no download of `name`, and what to do."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    if isinstance(error, errors.LocalEntryNotFoundError):
        if not isinstance(error.__cause__, errors.HfHubHTTPError):
            return f"{name} is not on this machine and the Hub cannot be reached; connect, or download it first."
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated; accept its terms on huggingface.co, run `hf auth login`, and try again."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision}; look at its commits on huggingface.co."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The Hub has no {name}, or it is private; check the name or run `hf auth login`."
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return f"HF_ENDPOINT is no web address ({error}); correct it or unset it."
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403):
        return f"The Hub does not let this account read {name} ({status}); run `hf auth login` with one that may."
    if status == 404:
        return f"The Hub has no such file of {name}; look at it on huggingface.co."
    if status == 429:
        return f"The Hub had too many requests from here ({status}); run it again in some minutes, it continues."
    if status is not None:
        return f"The Hub did not answer about {name} ({status}); run it again later, it continues."
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"The download of {name} broke off ({lines[0]}); run it again, it continues."


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

    convolution("speech.encoder.conv1", e.num_mel_bins)
    convolution("speech.encoder.conv2", e.d_model)
    shapes["speech.encoder.embed_positions.weight"] = (e.max_source_positions, e.d_model)
    for i in range(e.encoder_layers):
        layer = f"speech.encoder.layers.{i}"
        norm(f"{layer}.self_attn_layer_norm")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{name}", e.d_model, e.d_model, bias=name != "k_proj")
        norm(f"{layer}.final_layer_norm")
        linear(f"{layer}.fc1", e.d_model, e.encoder_ffn_dim, bias=True)
        linear(f"{layer}.fc2", e.encoder_ffn_dim, e.d_model, bias=True)
    norm("speech.encoder.layer_norm")
    if a is not None:
        linear("speech.adapter.linear_1", e.d_model * a.stack, a.hidden_size or d.hidden_size, a.bias)
        if a.hidden_size is not None:
            linear("speech.adapter.linear_2", a.hidden_size, d.hidden_size, a.bias)
    if r is not None:
        shapes["speech.recognizer.embed_tokens.weight"] = (r.vocab_size, e.d_model)
        shapes["speech.recognizer.embed_positions.weight"] = (r.max_target_positions, e.d_model)
        for i in range(r.decoder_layers):
            layer = f"speech.recognizer.layers.{i}"
            for part in ("self_attn", "encoder_attn"):
                norm(f"{layer}.{part}_layer_norm")
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    linear(f"{layer}.{part}.{name}", e.d_model, e.d_model, bias=name != "k_proj")
            norm(f"{layer}.final_layer_norm")
            linear(f"{layer}.fc1", e.d_model, r.decoder_ffn_dim, bias=True)
            linear(f"{layer}.fc2", r.decoder_ffn_dim, e.d_model, bias=True)
        norm("speech.recognizer.layer_norm")

    queries, keys = d.num_attention_heads * d.head_dim, d.num_key_value_heads * d.head_dim
    shapes["decoder.embed_tokens.weight"] = (d.vocab_size, d.hidden_size)
    for i in range(d.num_hidden_layers):
        layer = f"decoder.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (d.hidden_size,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (d.hidden_size,)
        for prefix in ("", "sst_") if s is not None else ("",):
            linear(f"{layer}.self_attn.{prefix}q_proj", d.hidden_size, queries, d.attention_bias)
            linear(f"{layer}.self_attn.{prefix}k_proj", d.hidden_size, keys, d.attention_bias)
            linear(f"{layer}.self_attn.{prefix}v_proj", d.hidden_size, keys, d.attention_bias)
            if not prefix or s.output_projection:
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


def check_checkpoint(folder: Path) -> ModelConfig:
    """The checked configuration of a folder; CheckpointError names a missing, misshapen or unknown tensor."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}; train it or name another model.")
    config = load_config(folder)
    found, expected = stored_shapes(folder), expected_tensors(config)
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
    files = sorted([*Path(folder).glob("*.safetensors"), Path(folder) / "config.json"])
    return _hash_files(tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files))


@lru_cache(maxsize=8)
def _hash_files(files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as file:
            total.update(json.dumps([Path(path).name, hashlib.file_digest(file, "sha256").hexdigest()]).encode())
    return total.hexdigest()
