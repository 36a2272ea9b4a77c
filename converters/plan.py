"""What a conversion will do, before it does anything: the source understood, every output tensor accounted for.

It reads configurations and headers, and names what is missing, misshapen or left out. No tensor is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from tokenizers import Tokenizer

from converters import qwen2_audio, voxtral, whisper_qwen2
from converters.chat_template import load_tokenizer, prompt_config, read_tokenizer
from converters.family import NO_REASON, Family, Json, section
from converters.formats import open_source
from converters.recognizer import recognizer_config
from converters.source import Source, Stored, tensors_of
from converters.stream import Packing, Recipe
from speech_xl.checkpoints import RECOGNIZER_TOKENIZER, expected_tensors, packed_tensors
from speech_xl.config import ModelConfig, SSTConfig, from_dict, to_dict
from speech_xl.errors import CheckpointError

FAMILIES = {"qwen2_audio": qwen2_audio.FAMILY, "voxtral": voxtral.FAMILY}
SUPPORTED = "Qwen2-Audio, Voxtral, Whisper with --decoder Qwen2 or Llama, and Speech-XL's own torch and mlx layouts"
OWN = "Speech-XL"
NUMBERS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SETTINGS = ("name", "description", "prompt", "sst", "evidence_layers")  # of config.json
FRESH_SST = SSTConfig(interval=64, ratios=(2, 4, 8, 16), default_ratio=8, trained=False)


@dataclass(frozen=True)
class Options:
    """How the output is to be. `dtype` None: as the source stores it."""

    layout: str = "torch"
    dtype: str | None = None
    packing: Packing | None = None
    with_sst: bool = False
    recognizer: bool = False  # speech tokens from the words that a Whisper source recognises
    settings: Json | None = None  # parts of config.json that replace what the source says


@dataclass(frozen=True)
class Plan:
    """Everything that will be written."""

    family: str
    config: ModelConfig
    recipes: list[Recipe]
    unused: list[tuple[str, str]]  # (source tensor, why it is left out)
    tokenizer: Tokenizer | None
    recognizer_tokenizer: Tokenizer | None
    files: list[Path]  # every weight file of the source

    @property
    def size(self) -> int:
        return sum(recipe.size for recipe in self.recipes)

    @property
    def dtypes(self) -> str:
        """The types of the output's numbers, in words."""
        return " and ".join(sorted({str(recipe.dtype).removeprefix("torch.") for recipe in self.recipes}))

    @property
    def narrowed(self) -> list[Recipe]:
        """What the output's type rounds."""
        return [recipe for recipe in self.recipes if recipe.is_narrowed]


def make_plan(path: Path, decoder_path: Path | None, options: Options) -> Plan:
    """Understand a source (and, for Whisper, its decoder's); CheckpointError says what it lacks."""
    source, decoder = open_source(path), open_source(decoder_path) if decoder_path else None
    folder, config = source.path, source.config()
    if config.get("model_type") == "speech_xl":
        if decoder is not None:
            raise CheckpointError(f"--decoder is for Whisper sources; {folder} is a Speech-XL model and has its own.")
        if options.recognizer:
            raise CheckpointError(f"--recognizer is for Whisper sources; {folder} is a Speech-XL model already.")
        with explained(folder):
            return own_plan(folder, from_dict(config), options)
    refuse_quantized(folder, config)
    heard = None  # the tokenizer of a recognizer
    if config.get("model_type") == "whisper":
        if decoder is None:
            raise CheckpointError("A Whisper model alone cannot answer; name a Qwen2 or Llama decoder with --decoder.")
        family, words = whisper_qwen2.FAMILY, decoder
        whisper, config = (
            config,
            {"audio_config": config, "text_config": decoder.config(), "model_type": "whisper_qwen2"},
        )
        refuse_quantized(decoder.path, config["text_config"])
        stored = joined_tensors(source, decoder)
        if options.recognizer:
            family, heard = whisper_qwen2.WITH_RECOGNIZER, source.tokenizer()
            with explained(folder):
                config["recognizer"] = recognizer_config(whisper, source.generation_config(), heard)
    else:
        found = FAMILIES.get(str(config.get("model_type")))
        if found is None:
            kind = config.get("model_type") or "no stated type"
            raise CheckpointError(f"{folder} is a model of {kind}, which is not supported; supported are {SUPPORTED}.")
        if decoder is not None:
            raise CheckpointError(f"--decoder is for Whisper sources; {folder} is {found.name} and has its own.")
        if options.recognizer:
            raise CheckpointError(f"--recognizer is for Whisper sources; {folder} is {found.name}.")
        family, words = found, source
        stored = source.tensors()
    with explained(*dict.fromkeys((folder, words.path))):
        ours = family.translate(config, frozenset(stored))
        tokenizer = words.tokenizer()
        ours = dataclasses.replace(ours, prompt=prompt_config(family, words, config, tokenizer), name=name_of(folder))
        check_layers(ours, stored)
    table, unused = used_tensors(family, stored)
    wanted = expected_tensors(ours)
    fresh = (lambda name: name.startswith("speech.adapter.")) if family is whisper_qwen2.FAMILY else (lambda _: False)
    for name in wanted:
        if name not in table and not fresh(name):
            theirs = family.theirs(name)
            home = words.path if theirs.startswith(whisper_qwen2.TEXT) else folder
            raise CheckpointError(f"{home} lacks the tensor {bare(theirs)} (our {name}); download it again.")
    for name in list(table):
        if name not in wanted:
            unused.append((table.pop(name)[0], "the configuration has no use for it"))
    for name, (theirs, tensor) in table.items():
        if tensor.shape != wanted[name]:
            raise CheckpointError(
                f"{tensor.path.parent}: the tensor {bare(theirs)} has shape {list(tensor.shape)} where its config.json needs "
                f"{list(wanted[name])}; download it again."
            )
    tensors = {name: tensor for name, (_, tensor) in table.items()}
    return finish(family.name, ours, tensors, {}, unused, (tokenizer, heard), stored.values(), options)


def joined_tensors(speech: Source, text: Source) -> dict[str, Stored]:
    """The tensors of both, told apart by prefixes."""
    prefixes = ((whisper_qwen2.SPEECH, speech), (whisper_qwen2.TEXT, text))
    return {prefix + name: tensor for prefix, source in prefixes for name, tensor in source.tensors().items()}


@contextlib.contextmanager
def explained(*folders: Path) -> Iterator[None]:
    """Any value may have any type in a stranger's file: what fails on one is a sentence."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        where = " or ".join(map(str, folders))
        raise CheckpointError(f"A .json file of {where} holds a value of the wrong kind ({error!r}).") from None


def refuse_quantized(folder: Path, config: Json) -> None:
    for part in (config, config.get("text_config"), config.get("audio_config")):
        if isinstance(part, dict) and (part.get("quantization_config") or part.get("quantization")):
            raise CheckpointError(f"{folder} is already quantized; convert the original, and quantize with -q.")


def check_layers(config: ModelConfig, stored: Collection[str]) -> None:
    """Before tables are made of as many layers as a configuration claims."""
    layers = max(config.encoder.encoder_layers, config.decoder.num_hidden_layers)
    if layers > len(stored):
        raise CheckpointError(f"The config.json speaks of {layers} layers where only {len(stored)} tensors are stored.")


def name_of(folder: Path) -> str:
    """The folder's own name, or the Hub's where it is a snapshot (models--owner--name/snapshots/commit)."""
    path = folder.resolve()
    if path.parent.name == "snapshots":
        path = path.parent.parent
    return (path.stem if path.is_file() else path.name).rpartition("--")[2]


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
    check_layers(config, stored)
    wanted = expected_tensors(config)
    shapes = dict(wanted)
    if config.quantization is not None:
        if options.packing is not None:
            raise CheckpointError(f"{folder} is already quantized; convert the original, and quantize with -q.")
        packing = Packing(config.quantization["group_size"], config.quantization["bits"])
        for name, shape in wanted.items():
            base = name.removesuffix(".weight")
            if len(shape) == 2 and f"{base}.scales" in stored:
                shapes |= packed_tensors(name, shape, **config.quantization)
                if f"{base}.biases" in stored:
                    packed[name] = (stored[f"{base}.scales"], stored[f"{base}.biases"], packing)
    unused = [(name, NO_REASON) for name in stored if name not in shapes]
    if missing := [name for name in shapes if name not in stored]:
        raise CheckpointError(f"{folder} lacks the tensor {missing[0]}; copy or convert it again.")
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has shape {list(stored[name].shape)} where config.json needs {list(shape)}; "
                "copy or convert it again."
            )
        kinds = {torch.uint32} if name in packed else NUMBERS
        if stored[name].dtype not in kinds:
            raise CheckpointError(f"{folder}: the tensor {name} holds {stored[name].dtype}; copy or convert it again.")
    tensors = {name: stored[name] for name in wanted}
    heard = folder / RECOGNIZER_TOKENIZER
    tokenizers = load_tokenizer(folder), read_tokenizer(heard) if heard.is_file() else None
    return finish(OWN, config, tensors, packed, unused, tokenizers, stored.values(), options)


def finish(
    family: str,
    config: ModelConfig,
    tensors: dict[str, Stored],
    packed: dict[str, tuple[Stored, Stored, Packing]],
    unused: list[tuple[str, str]],
    tokenizers: tuple[Tokenizer | None, Tokenizer | None],
    stored: Iterable[Stored],
    options: Options,
) -> Plan:
    """The output's configuration and a recipe for each of its tensors. `tokenizers`: decoder's and recognizer's."""
    if options.with_sst and config.sst is not None:
        raise CheckpointError("This checkpoint has SST parameters already; convert it without --with-sst.")
    if options.packing is not None and options.layout != "mlx":
        raise CheckpointError("Only MLX computes with packed weights; quantize with --to mlx.")
    for name, tensor in tensors.items():
        if name not in packed and tensor.dtype not in NUMBERS:
            raise CheckpointError(
                f"The tensor {name} holds {tensor.dtype}, which is quantized or no number; take the original."
            )
    dtypes = output_types(tensors, packed, options.dtype, keeps_own=family == OWN)
    widest = reduce(torch.promote_types, dtypes.values())
    is_swapped = config.layout != options.layout
    tokenizer, heard = tokenizers
    target = dataclasses.replace(
        with_settings(config, options),
        layout=options.layout,
        dtype=next(name for name, value in DTYPES.items() if value == widest),
        quantization=dataclasses.asdict(options.packing) if options.packing else None,
    )
    recipes = []
    for name, shape in expected_tensors(target).items():
        source = tensors.get(name)
        if source is None and name == "decoder.sst_embedding":
            row = end_row(target, tokenizer)
            embeddings = "decoder.embed_tokens.weight"
            recipes.append(Recipe(name, shape, dtypes[embeddings], tensors[embeddings], row=row))
            continue
        origin = name if source is not None else name.replace(".sst_", ".")
        source = tensors.get(origin)
        is_linear = name.startswith("decoder.") and name.endswith(".weight")
        recipes.append(
            Recipe(
                name, shape, dtypes.get(origin, widest), source,
                swap=is_swapped and ".conv" in name,
                packed=packed.get(origin),
                packing=options.packing if is_linear and options.packing and options.packing.fits(shape) else None,
            )
        )  # fmt: skip
    files = list(dict.fromkeys(t.path for t in stored))
    return Plan(family, target, recipes, unused, tokenizer, heard, files)


def with_settings(config: ModelConfig, options: Options) -> ModelConfig:
    """The configuration with --settings in place of what the source says; SST settings are for fresh SSTs."""
    settings = dict(options.settings or {})
    if unknown := sorted(set(settings) - set(SETTINGS)):
        raise CheckpointError(f"--settings cannot change {unknown[0]}; it can change {', '.join(SETTINGS)}.")
    if "sst" in settings and not options.with_sst:
        raise CheckpointError("--settings describes fresh SSTs; add --with-sst or leave sst out.")
    if options.with_sst:
        config = dataclasses.replace(config, sst=FRESH_SST)
        if "sst" in settings:
            settings["sst"] = {"trained": False} | section(settings, "sst")
    with explained(Path("--settings")):
        return from_dict(to_dict(config) | settings)


def output_types(
    tensors: dict[str, Stored], packed: dict[str, tuple[Stored, Stored, Packing]], chosen: str | None, keeps_own: bool
) -> dict[str, torch.dtype]:
    """Our name -> type of each output. Without a choice nothing is rounded, but for float64, which no layout has.

    Our own layouts keep each tensor's type, so that they convert into each other and back bit for bit; other
    sources get one type that holds them all.
    """
    own = {name: packed[name][0].dtype if name in packed else tensor.dtype for name, tensor in tensors.items()}
    own = {name: torch.float32 if dtype == torch.float64 else dtype for name, dtype in own.items()}
    if chosen is not None or not keeps_own:
        one = DTYPES[chosen] if chosen is not None else reduce(torch.promote_types, own.values())
        return dict.fromkeys(own, one)
    return own


def end_row(config: ModelConfig, tokenizer: Tokenizer | None) -> int:
    """The embedding that fresh SSTs start from: the end token's."""
    ends = [tokenizer.token_to_id(token) for token in config.prompt.end_tokens] if tokenizer else []
    return next((number for number in ends if number is not None and number < config.decoder.vocab_size), 0)
