"""A whole checkpoint from base parts and what was trained on top of them.

What was trained is stored as whole tensors, or as a low-rank difference to the base one: W = base + B @ diag(s) @ A
with `<tensor>.lora_A` (r, in), `<tensor>.lora_B` (out, r), both in 8 bits, and `<tensor>.lora_scale` (r,). The base of
an SST projection is the plain projection of its layer. It knows our names; formats and foreign names are others'.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from converters import whisper_qwen2
from converters.chat_template import load_tokenizer, read_tokenizer
from converters.convert import convert
from converters.formats import open_source
from converters.plan import FAMILIES
from converters.source import Source, Stored, tensors_of
from converters.stream import Recipe
from converters.target import DTYPES, OWN, Options, Plan
from speech_xl.checkpoints import LOW_RANK, RECOGNIZER_TOKENIZER, base_name, check_checkpoint, expected_tensors
from speech_xl.errors import CheckpointError


def assemble(folder: Path, parts: list[Path], out: Path) -> None:
    """Make `out` from the by-reference checkpoint `folder` and a folder for each of its parts: speech first, text last."""
    config = check_checkpoint(folder)
    target = dataclasses.replace(config, parts=())
    sources = [open_source(part) for part in parts]
    base, trained = base_tensors(sources), tensors_of(folder)
    recipes = []
    for name, shape in expected_tensors(target).items():
        origin = base_name(name, target.sst)
        factors = None
        if name + LOW_RANK[0] in trained:
            a, b, scale = (trained[name + ending] for ending in LOW_RANK)
            factors = (a, b, scale)
        if origin is None and factors is not None:
            recipes.append(Recipe(name, shape, DTYPES[target.dtype], low_rank=factors))
            continue
        source = trained.get(name) or base.get(origin or name)
        if source is None or source.shape != shape:
            what = "have no" if source is None else "have another shape of the"
            raise CheckpointError(
                f"The base parts of {folder} {what} tensor {name}; take the parts that it was trained from."
            )
        recipes.append(Recipe(name, shape, DTYPES[target.dtype], source, low_rank=factors))
    tokenizer, heard = load_tokenizer(folder), folder / RECOGNIZER_TOKENIZER
    recognizer_tokenizer = None
    if heard.is_file():
        recognizer_tokenizer = read_tokenizer(heard)
    elif target.recognizer is not None:
        recognizer_tokenizer = sources[0].tokenizer()
    plan = Plan(
        family=OWN,
        config=target,
        recipes=recipes,
        unused=[],
        tokenizer=tokenizer if tokenizer is not None else sources[-1].tokenizer(),
        recognizer_tokenizer=recognizer_tokenizer,
        files=list(dict.fromkeys(tensor.path for tensor in (*base.values(), *trained.values()))),
    )
    convert(plan, Options(), out, overwrite=False)


def base_tensors(sources: list[Source]) -> dict[str, Stored]:
    """Every tensor of the parts that we have a name for, by our name."""
    found: dict[str, Stored] = {}
    for source in sources:
        kind = str(source.config().get("model_type"))
        family = FAMILIES.get(kind, whisper_qwen2.WITH_RECOGNIZER)
        prefix = "" if kind in FAMILIES else whisper_qwen2.SPEECH if kind == "whisper" else whisper_qwen2.TEXT
        for theirs, tensor in source.tensors().items():
            if (name := family.ours(prefix + theirs)) is not None:
                found[name] = tensor
    return found
