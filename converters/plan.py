"""What a conversion will do, before it does anything: the source understood, every output tensor accounted for.

It reads configurations and headers, and names what is missing, misshapen or left out. No tensor is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from converters import qwen2_audio, voxtral, whisper_qwen2
from converters.family import Family, Json
from converters.source import Stored, read_json, tensors_of
from converters.stream import Packing, Recipe
from converters.words import load_tokenizer, prompt_config
from speech_xl.checkpoints import expected_tensors
from speech_xl.config import ModelConfig, SSTConfig, from_dict
from speech_xl.errors import CheckpointError

FAMILIES = {"qwen2_audio": qwen2_audio.FAMILY, "voxtral": voxtral.FAMILY}
SUPPORTED = "Qwen2-Audio, Voxtral, Whisper with --decoder Qwen2 or Qwen2.5, and Speech-XL's own torch and mlx layouts"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FRESH_SST = SSTConfig(interval=64, ratios=(2, 4, 8, 16), default_ratio=8, trained=False)


@dataclass(frozen=True)
class Options:
    """How the output is to be. `dtype` None: as the source stores it."""

    layout: str = "torch"
    dtype: str | None = None
    packing: Packing | None = None
    with_sst: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that will be written."""

    family: str
    config: ModelConfig
    recipes: list[Recipe]
    unused: list[tuple[str, str]]  # (source tensor, why it is left out)
    tokenizer: Tokenizer | None
    files: list[Path]  # every weight file of the source

    @property
    def size(self) -> int:
        return sum(recipe.size for recipe in self.recipes)


def make_plan(folder: Path, decoder: Path | None, options: Options) -> Plan:
    """Understand a source folder (and, for Whisper, its decoder's); CheckpointError says what it lacks."""
    config = read_config(folder)
    if config.get("model_type") == "speech_xl":
        return own_plan(folder, from_dict(config), options)
    if config.get("quantization_config") or config.get("quantization"):
        raise CheckpointError(f"{folder} is already quantized; convert the original, and quantize with -q.")
    if config.get("model_type") == "whisper":
        if decoder is None:
            raise CheckpointError("A Whisper model alone cannot answer; name a Qwen2 decoder with --decoder.")
        family, words = whisper_qwen2.FAMILY, decoder
        config = {"audio_config": config, "text_config": read_config(decoder), "model_type": "whisper_qwen2"}
        prefixes = ((whisper_qwen2.SPEECH, folder), (whisper_qwen2.TEXT, decoder))
        stored = {prefix + name: t for prefix, where in prefixes for name, t in tensors_of(where).items()}
    else:
        found = FAMILIES.get(str(config.get("model_type")))
        if found is None:
            kind = config.get("model_type") or "no stated type"
            raise CheckpointError(f"{folder} is a model of {kind}, which is not supported; supported are {SUPPORTED}.")
        if decoder is not None:
            raise CheckpointError(f"--decoder is for Whisper sources; {folder} is {found.name} and has its own.")
        family, words = found, folder
        stored = tensors_of(folder)
    try:
        ours = family.translate(config, frozenset(stored))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The config.json of {folder} holds a value of the wrong kind ({error}).") from None
    tokenizer = load_tokenizer(words)
    ours = dataclasses.replace(ours, prompt=prompt_config(family, words, config, tokenizer), name=name_of(folder))
    table, unused = used_tensors(family, stored)
    wanted = expected_tensors(ours)
    fresh = (lambda name: name.startswith("speech.adapter.")) if family is whisper_qwen2.FAMILY else (lambda _: False)
    for name in wanted:
        if name not in table and not fresh(name):
            raise CheckpointError(
                f"{folder} lacks the tensor {bare(family.theirs(name))} (our {name}); download it again."
            )
    for name in list(table):
        if name not in wanted:
            unused.append((table.pop(name)[0], "the configuration has no use for it"))
    for name, (theirs, tensor) in table.items():
        if tensor.shape != wanted[name]:
            raise CheckpointError(
                f"{folder}: the tensor {bare(theirs)} has shape {list(tensor.shape)} where its config.json needs "
                f"{list(wanted[name])}; download it again."
            )
    tensors = {name: tensor for name, (_, tensor) in table.items()}
    return finish(family.name, ours, tensors, {}, unused, tokenizer, stored.values(), options)


def read_config(folder: Path) -> Json:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; it is no model folder, or half downloaded.")
    return read_json(path)


def name_of(folder: Path) -> str:
    """The folder's own name, or the Hub's where it is a snapshot (models--owner--name/snapshots/commit)."""
    path = folder.resolve()
    if path.parent.name == "snapshots":
        path = path.parent.parent
    return path.name.rpartition("--")[2]


def bare(name: str) -> str:
    return name.removeprefix(whisper_qwen2.SPEECH).removeprefix(whisper_qwen2.TEXT)


def used_tensors(
    family: Family, stored: dict[str, Stored]
) -> tuple[dict[str, tuple[str, Stored]], list[tuple[str, str]]]:
    """-> our name: (their name, tensor), and what is left out with a reason each."""
    table: dict[str, tuple[str, Stored]] = {}
    unused = []
    for theirs, tensor in stored.items():
        name = family.ours(theirs)
        if name is None:
            unused.append((theirs, family.why_unused(theirs)))
        elif name in table:
            raise CheckpointError(f"The tensors {table[name][0]} and {theirs} are the same one; the source is broken.")
        else:
            table[name] = (theirs, tensor)
    return table, unused


def own_plan(folder: Path, config: ModelConfig, options: Options) -> Plan:
    """From one of our layouts: torch, mlx, or mlx with packed weights."""
    stored = tensors_of(folder)
    packed: dict[str, tuple[Stored, Stored, Packing]] = {}
    wanted = expected_tensors(config)
    if config.quantization is not None:
        packing = Packing(config.quantization["group_size"], config.quantization["bits"])
        for name in wanted:
            base = name.removesuffix(".weight")
            if f"{base}.scales" in stored and f"{base}.biases" in stored:
                packed[name] = (stored[f"{base}.scales"], stored[f"{base}.biases"], packing)
        if options.packing is not None:
            raise CheckpointError(f"{folder} is already quantized; convert the original, and quantize with -q.")
    parts = {f"{n.removesuffix('.weight')}.{part}" for n in packed for part in ("scales", "biases")}
    unused = [(n, "no part of this architecture") for n in stored if n not in wanted and n not in parts]
    for name, shape in wanted.items():
        if name not in stored:
            raise CheckpointError(f"{folder} lacks the tensor {name}; copy or convert it again.")
        if name in packed:
            shape = (shape[0], shape[1] * packed[name][2].bits // 32)
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has shape {list(stored[name].shape)} where config.json needs {list(shape)}; "
                "copy or convert it again."
            )
    tensors = {name: stored[name] for name in wanted}
    return finish("Speech-XL", config, tensors, packed, unused, load_tokenizer(folder), stored.values(), options)


def finish(
    family: str,
    config: ModelConfig,
    tensors: dict[str, Stored],
    packed: dict[str, tuple[Stored, Stored, Packing]],
    unused: list[tuple[str, str]],
    tokenizer: Tokenizer | None,
    stored: Iterable[Stored],
    options: Options,
) -> Plan:
    """The output's configuration and a recipe for each of its tensors."""
    if options.with_sst and config.sst is not None:
        raise CheckpointError("This checkpoint has SST parameters already; convert it without --with-sst.")
    if options.packing is not None and options.layout != "mlx":
        raise CheckpointError("Only MLX computes with packed weights; quantize with --to mlx.")
    floats = [t.dtype for n, t in tensors.items() if n not in packed] or [torch.float32]
    own_type = max(set(floats), key=floats.count)
    dtype = DTYPES[options.dtype] if options.dtype else own_type if own_type in DTYPES.values() else torch.float32
    is_swapped = config.layout != options.layout
    target = dataclasses.replace(
        config,
        layout=options.layout,
        dtype=next(name for name, value in DTYPES.items() if value == dtype),
        sst=FRESH_SST if options.with_sst else config.sst,
        quantization=dataclasses.asdict(options.packing) if options.packing else None,
    )
    recipes = []
    for name, shape in expected_tensors(target).items():
        source = tensors.get(name)
        if source is None and name == "decoder.sst_embedding":
            row = end_row(target, tokenizer)
            recipes.append(Recipe(name, shape, dtype, tensors["decoder.embed_tokens.weight"], row=row))
            continue
        origin = name if source is not None else name.replace(".sst_", ".")
        source = tensors.get(origin)
        if source is not None and not source.dtype.is_floating_point and origin not in packed:
            raise CheckpointError(f"The tensor {name} holds {source.dtype} where numbers with a fraction belong.")
        is_linear = name.startswith("decoder.") and name.endswith(".weight")
        recipes.append(
            Recipe(
                name, shape, dtype, source,
                swap=is_swapped and len(shape) == 3,
                packed=packed.get(origin),
                packing=options.packing if is_linear and options.packing and options.packing.fits(shape) else None,
            )
        )  # fmt: skip
    files = list(dict.fromkeys(t.path for t in stored))
    return Plan(family, target, recipes, unused, tokenizer, files)


def end_row(config: ModelConfig, tokenizer: Tokenizer | None) -> int:
    """The embedding that fresh SSTs start from: the end token's."""
    ends = [tokenizer.token_to_id(token) for token in config.prompt.end_tokens] if tokenizer else []
    return next((number for number in ends if number is not None and number < config.decoder.vocab_size), 0)
