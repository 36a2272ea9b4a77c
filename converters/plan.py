"""What a conversion will do, before it does anything: the source understood, every output tensor accounted for.

It reads configurations and headers, and names what is missing, misshapen or left out. No tensor is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import torch

from converters import qwen2_audio, voxtral, whisper_qwen2
from converters.chat_template import load_tokenizer, prompt_config, read_tokenizer
from converters.family import NO_REASON, Family, Json
from converters.formats import open_source
from converters.recognizer import recognizer_config
from converters.source import Source, Stored, tensors_of
from converters.stream import Packing
from converters.target import NUMBERS, OWN, Options, Plan, explained, finish
from speech_xl.checkpoints import RECOGNIZER_TOKENIZER, expected_tensors, packed_tensors
from speech_xl.config import ModelConfig
from speech_xl.config_file import from_dict
from speech_xl.errors import CheckpointError

FAMILIES = {"qwen2_audio": qwen2_audio.FAMILY, "voxtral": voxtral.FAMILY}
SUPPORTED = "Qwen2-Audio, Voxtral, Whisper with --decoder Qwen2 or Llama, and Speech-XL's own torch and mlx layouts"


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


def refuse_quantized(folder: Path, config: Json) -> None:
    """CheckpointError if a source's numbers are packed already."""
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
    """A tensor's name without the prefix of its half of a joined source."""
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
