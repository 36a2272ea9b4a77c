"""What a stage leaves: a whole checkpoint in the source's layout and number type.

It knows tensors, names and folders; sharded ones are gathered one at a time. No data, no optimizer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from speech_xl.config import ModelConfig
from speech_xl.config_file import save_config
from speech_xl.whole_file import writing
from training.lora import adapters_of, merged, our_name
from training.network import Network, other_layout, read_tensors
from training.sharding import whole


@torch.no_grad()
def changed_tensors(
    network: Network, trained: Collection[str], dtype: torch.dtype, keeps: bool = True
) -> dict[str, torch.Tensor]:
    """The tensors that training changed, by checkpoint names, adapters merged into the weights they adapt; on the CPU.

    All processes call this together; those without `keeps` help to gather, and keep nothing. SSTs count as changed:
    they may be fresh.
    """
    found: dict[str, torch.Tensor] = {}
    adapted = adapters_of(network)
    for name, tensor in network.state_dict().items():
        ours = our_name(name)
        if ".lora_" in ours or ours.startswith("ctc."):
            continue
        layer = adapted.get(ours.removesuffix(".weight")) if ours.endswith(".weight") else None
        if layer is None and ours not in trained and "sst_" not in ours:
            continue
        full = whole(tensor)
        if layer is not None:
            full = merged(full, whole(layer.lora_A.weight), whole(layer.lora_B.weight), layer.scaling)
        if keeps:
            found[ours] = full.cpu().to(dtype)
    return found


def export(changed: dict[str, torch.Tensor], config: ModelConfig, source: Path, folder: Path) -> None:
    """Write `folder` as `source` with these tensors in their places. The folder is either whole or absent.

    OutputError where it cannot be written.
    """
    tensors = dict(read_tensors(source, lambda name: name not in changed and "sst_" not in name))
    tensors |= {name: other_layout(name, tensor, config.layout).contiguous() for name, tensor in changed.items()}
    with folder_of(folder) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        save_config(replace(config, parts=()), temporary)  # it holds everything itself
        for path in source.glob("*tokenizer.json"):
            shutil.copyfile(path, temporary / path.name)


def publish(source: Path, folder: Path) -> None:
    """Make `folder` the folder `source`, by hard links where the disk has them. OutputError where that cannot be."""
    with folder_of(folder) as temporary:
        for path in source.iterdir():
            try:
                os.link(path, temporary / path.name)
            except OSError:
                shutil.copyfile(path, temporary / path.name)


@contextlib.contextmanager
def folder_of(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` when the block ends well; an older one there goes then.

    OutputError where it cannot be written.
    """
    temporary, old = (folder.with_name(folder.name + ending) for ending in (".partial", ".old"))
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)  # also that of a run which was killed between the two
