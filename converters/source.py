"""A folder's weights: its tensors by name, shape and place, read in pieces.

Safetensors are read with plain file reads, a few rows at a time: neither a file nor a large tensor is ever
held or mapped whole. Old .bin files go through torch's restricted unpickler, which refuses code. It knows
no architecture and writes nothing.
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tokenizers import Tokenizer

from converters.family import Json
from speech_xl.errors import CheckpointError

PIECE = 64 * 2**20  # bytes of a tensor that are in memory at a time
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
    "I16": torch.int16,
    "U16": torch.uint16,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a source: where its bytes are. `key` is its name in a .bin file, which torch reads by itself."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = 0
    key: str | None = None

    def pieces(self, limit: int | None = None) -> Iterator[torch.Tensor]:
        """The tensor in consecutive blocks of rows (its first axis), each at most about `limit` bytes (PIECE)."""
        if not self.shape or math.prod(self.shape) == 0:
            yield self.whole()
            return
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        rows = max(1, (limit or PIECE) // row)
        for first in range(0, self.shape[0], rows):
            yield self.rows(first, min(rows, self.shape[0] - first))

    def rows(self, first: int, count: int) -> torch.Tensor:
        """(count, ...) consecutive rows."""
        if self.key is not None:
            return state_of(self.path)[self.key][first : first + count]
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._read(self.start + first * row, (count, *self.shape[1:]))

    def whole(self) -> torch.Tensor:
        """All of the tensor, in its stored type."""
        return state_of(self.path)[self.key] if self.key is not None else self._read(self.start, self.shape)

    def _read(self, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        size = math.prod(shape) * self.dtype.itemsize
        if not size:
            return torch.zeros(shape, dtype=self.dtype)
        data = np.fromfile(self.path, np.uint8, size, offset=start)
        if len(data) != size:
            raise CheckpointError(f"{self.path} became shorter while it was read; copy or download it again.")
        return torch.from_numpy(data).view(self.dtype).view(shape)


class Source(Protocol):
    """A published model. Names of fields and tensors are transformers'. CheckpointError for what is damaged."""

    path: Path

    def config(self) -> Json:
        """config.json's object, or what the format has in its place."""

    def tensors(self) -> dict[str, Stored]:
        """Name -> where each tensor lies; nothing is read yet."""

    def tokenizer(self) -> Tokenizer | None:
        """The text's tokenizer; None if the source has none."""

    def chat_template(self) -> str | None:
        """Jinja text of the chat template; None if the source has none."""

    def special_tokens(self) -> Json:
        """bos_token and its like, as plain strings, for templates that mention them."""

    def generation_config(self) -> Json:
        """generation_config.json's object, empty if the source has none."""


def read_json(path: Path) -> Json:
    """The object in a JSON file; CheckpointError if it cannot be read or is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy or download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold one JSON object; copy or download it again.")
    return data


def first_line(error: Exception) -> str:
    """What a stranger's error says, short enough for the middle of a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def tensors_of(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder, by their name: sharded or single safetensors, else .bin."""
    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        for name, stored in (read_bin(path) if path.suffix == ".bin" else read_header(path)).items():
            if name in found:
                raise CheckpointError(f"The tensor {name} is in {found[name].path} and in {path}; download them again.")
            found[name] = stored
    index = next((folder / f"{n}.index.json" for n in INDEXED if (folder / f"{n}.index.json").is_file()), None)
    for name, file in read_json(index)["weight_map"].items() if index is not None else ():
        if name not in found:
            raise CheckpointError(f"{index} names the tensor {name}, which no shard holds; download it again.")
        if found[name].path.name != file:
            raise CheckpointError(
                f"{index} says that {file} holds the tensor {name}, which is in {found[name].path.name}; download it again."
            )
    return found


def unread_files(folder: Path) -> list[Path]:
    """Safetensors that are no part of the folder's weights: not in the index, or beside the one file that counts."""
    found = set(folder.glob("*.safetensors"))
    return sorted(found - set(weight_files(folder))) if found else []


INDEXED = ("model.safetensors", "pytorch_model.bin")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights; CheckpointError names one that is missing."""
    for name in INDEXED:
        index = folder / f"{name}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
                raise CheckpointError(f"{index} has no weight_map of file names; download it again.")
            shards = sorted(set(weight_map.values()))
            for shard in shards:
                if Path(shard).name != shard or len(shard) > 200:
                    raise CheckpointError(f"{index} names {shard}, which is not inside its folder; it is refused.")
                if not (folder / shard).is_file():
                    raise CheckpointError(f"{folder} lacks the shard {shard} of its index; download it again.")
            return [folder / shard for shard in shards]
        if (folder / name).is_file():
            return [folder / name]
    for pattern in ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin"):
        paths = sorted(p for p in folder.glob(pattern) if not p.name.startswith("consolidated"))
        if paths:
            check_numbering(paths)
            return paths
    raise CheckpointError(f"{folder} holds no weights (*.safetensors or *.bin); the download may be half done.")


def check_numbering(paths: list[Path]) -> None:
    """Files named model-00001-of-00003 must all be there, even where no index says so."""
    last = paths[0].stem.rpartition("-of-")[2]
    if "-of-" in paths[0].stem and last.isdecimal() and len(paths) != int(last):
        raise CheckpointError(
            f"{paths[0].parent} holds {len(paths)} of {int(last)} shards; the download is half done, run it again."
        )


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file; CheckpointError if it is cut off or damaged."""
    damaged = f"{path} is damaged or cut off; copy or download it again."
    found: dict[str, Stored] = {}
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > size - 8:
                raise CheckpointError(damaged)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        position = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (first, last) = entry["shape"], entry["data_offsets"]
            if entry["dtype"] not in DTYPES:
                raise CheckpointError(f"{path}: the tensor {name} is of the unknown type {entry['dtype']}.")
            stored = Stored(path, tuple(shape), DTYPES[entry["dtype"]], 8 + length + position)
            if any(type(n) is not int or n < 0 for n in (*shape, first, last)):
                raise CheckpointError(damaged)
            if math.prod(shape) * stored.dtype.itemsize != last - first:
                raise CheckpointError(f"{path}: the header of the tensor {name} contradicts itself; download it again.")
            if first != position:  # the format allows neither holes nor bytes that two tensors share
                raise CheckpointError(damaged)
            position = last
            found[name] = stored
        if 8 + length + position != size:
            raise CheckpointError(damaged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        raise CheckpointError(damaged) from None
    return found


def read_bin(path: Path) -> dict[str, Stored]:
    """The tensors of one PyTorch state dictionary."""
    OPEN.clear()
    return {name: Stored(path, tuple(t.shape), t.dtype, key=name) for name, t in state_of(path).items()}


OPEN: dict[Path, dict[str, torch.Tensor]] = {}  # the one .bin file that is in memory: old ones are read whole


def state_of(path: Path) -> dict[str, torch.Tensor]:
    """A .bin file's tensors, unpickled without code; CheckpointError if it holds anything else."""
    if path not in OPEN:
        OPEN.clear()
        OPEN[path] = load_state(path)
    return OPEN[path]


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of a PyTorch file; CheckpointError for one that is damaged or could run code."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's own, about pickles of another protocol
            state = load_pickle(path)
    except Exception as error:  # UnpicklingError for code; zip, EOF and runtime errors for damage
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise CheckpointError(
                f"{path} is a pickle that holds more than tensors, which can run code; it was refused and not "
                "executed. Ask its author for safetensors."
            ) from None
        raise CheckpointError(f"{path} is damaged or no PyTorch checkpoint; copy or download it again.") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no table of tensors; it cannot be converted.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not is_plain(tensor):
            raise CheckpointError(f"{path} holds {name!r}, which is no plain named tensor; it cannot be converted.")
    return {name: t.detach().resolve_neg().resolve_conj() for name, t in state.items()}


def is_plain(tensor: object) -> bool:
    """Numbers in memory, one after another: neither sparse, nested, quantized nor of another device."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_nested
        and not tensor.is_quantized
    )


def load_pickle(path: Path) -> object:
    """A PyTorch file's object, tensors and plain containers only, mapped into memory where its format allows it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
