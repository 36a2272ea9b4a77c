"""What a conversion writes: its options, the output's configuration, and a recipe for each of its tensors.

It knows our names and layouts, no foreign format. No tensor is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from tokenizers import Tokenizer

from converters.family import Json, section
from converters.source import Stored
from converters.stream import Packing, Recipe
from speech_xl.checkpoints import expected_tensors
from speech_xl.config import ModelConfig, SSTConfig
from speech_xl.config_file import from_dict, to_dict
from speech_xl.errors import CheckpointError

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
        """Bytes of the whole output."""
        return sum(recipe.size for recipe in self.recipes)

    @property
    def dtypes(self) -> str:
        """The types of the output's numbers, in words."""
        return " and ".join(sorted({str(recipe.dtype).removeprefix("torch.") for recipe in self.recipes}))

    @property
    def narrowed(self) -> list[Recipe]:
        """What the output's type rounds."""
        return [recipe for recipe in self.recipes if recipe.is_narrowed]


@contextlib.contextmanager
def explained(*folders: Path) -> Iterator[None]:
    """Any value may have any type in a stranger's file: what fails on one is a sentence."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        where = " or ".join(map(str, folders))
        raise CheckpointError(f"A .json file of {where} holds a value of the wrong kind ({error!r}).") from None


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
                name,
                shape,
                dtypes.get(origin, widest),
                source,
                swap=is_swapped and ".conv" in name and name.endswith(".weight"),
                packed=packed.get(origin),
                packing=options.packing if is_linear and options.packing and options.packing.fits(shape) else None,
            )
        )
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
