"""Writing a checkpoint tensor by tensor: what each output tensor is made of, and safetensors files in pieces.

A shard's layout is computed before anything is read, so that every piece goes straight to its place in the
file. A finished shard has its final name; an unfinished one does not, and is written again. It knows our
tensor names and layouts, no foreign format.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from converters.source import Stored
from speech_xl.errors import CheckpointError

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint32: "U32"}
WORDS = 8 * 2**20  # bytes of packed words that are unpacked at a time: each becomes up to eight numbers
SHARD = 2 * 2**30  # bytes in one output file: what a killed conversion does again, at most


@dataclass(frozen=True)
class Packing:
    """MLX's quantization: groups of `group_size` weights share a scale and a bias."""

    group_size: int
    bits: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of that shape can be packed: a matrix whose rows are whole groups."""
        return len(shape) == 2 and shape[1] % self.group_size == 0


@dataclass(frozen=True)
class Recipe:
    """How one of our tensors is made.

    `shape` is the result's before packing. `source` None: freshly initialised, or zero where there is a `low_rank`. `swap`: the last two axes
    change places. `row`: one row of a matrix. `packed`: (scales, biases) that turn packed words into
    numbers again. `low_rank`: A (r, in), B (out, r) and s (r,), whose product B @ diag(s) @ A is added. `packing`: pack the result.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: Stored | None = None
    swap: bool = False
    row: int | None = None
    packed: tuple[Stored, Stored, Packing] | None = None
    low_rank: tuple[Stored, Stored, Stored] | None = None
    packing: Packing | None = None

    def outputs(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> shape and type of what is written."""
        if self.packing is None:
            return {self.name: (self.shape, self.dtype)}
        rows, columns = self.shape
        base, groups = self.name.removesuffix(".weight"), (rows, columns // self.packing.group_size)
        return {
            self.name: ((rows, columns * self.packing.bits // 32), torch.uint32),
            f"{base}.scales": (groups, self.dtype),
            f"{base}.biases": (groups, self.dtype),
        }

    @property
    def is_narrowed(self) -> bool:
        """Whether some number of the source's type is rounded in the output's."""
        return self.source is not None and not holds(
            self.dtype, self.packed[0].dtype if self.packed else self.source.dtype
        )

    @property
    def size(self) -> int:
        """Bytes of all that is written of it."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.outputs().values())

    def pieces(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Blocks of rows of every output, in order; CheckpointError for a number that the output cannot hold."""
        for piece in self.numbers():
            made = piece.to(self.dtype)
            blocks = (made,) if self.packing is None else pack(made, self.packing)
            if not all(torch.isfinite(block).all() for block in (made, *blocks) if block.is_floating_point()):
                raise CheckpointError(self.describe_overflow(piece))
            yield blocks

    def describe_overflow(self, piece: torch.Tensor) -> str:
        """What the user reads where a number is not finite, in the source or in the output's type."""
        kind = str(self.dtype).removeprefix("torch.")
        wider = {"float16": "bfloat16", "bfloat16": "float32"}.get(kind)
        if wider is None or not torch.isfinite(piece).all():
            return f"The tensor {self.name} holds numbers that are not finite; the source is broken, download it again."
        return f"The tensor {self.name} holds numbers that {kind} cannot; use --dtype {wider}."

    def numbers(self) -> Iterator[torch.Tensor]:
        """The tensor in pieces of rows, unpacked and with differences added; bounded memory for a tensor of any size."""
        if self.source is None and self.low_rank is not None:
            yield self.low_rank[1].whole().double() @ self._scaled()
        elif self.source is None:
            yield fresh(self.name, self.shape)
        elif self.row is not None:
            yield self.source.rows(self.row, 1)[0]
        elif self.packed is not None:
            scales, biases, packing = self.packed
            first = 0
            for words in self.source.pieces(WORDS):
                rows = scales.rows(first, len(words)), biases.rows(first, len(words))
                yield unpack(words, *rows, packing)
                first += len(words)
        elif self.low_rank is not None:
            a, b = self._scaled(), self.low_rank[1]
            first = 0
            for piece in self.source.pieces():  # float64, so that every machine rounds to the same numbers
                yield piece.double() + b.rows(first, len(piece)).double() @ a
                first += len(piece)
        else:
            for piece in self.source.pieces():
                yield piece.transpose(1, 2) if self.swap else piece

    def _scaled(self) -> torch.Tensor:
        """diag(s) @ A of a low-rank difference, (r, in) float64."""
        assert self.low_rank is not None
        a, _, scale = self.low_rank
        return a.whole().double() * scale.whole().double()[:, None]


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of the type `narrow` is one of `wide`, too."""
    return torch.promote_types(narrow, wide) == wide


def fresh(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A layer's first weights, the same on every machine: scaled normal matrices, all else (biases, pooling) zero."""
    if len(shape) != 2:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])


def pack(numbers: torch.Tensor, packing: Packing) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """MLX's own packing -> words (R, D * bits / 32) uint32, scales and biases (R, D / group_size)."""
    import mlx.core as mx
    import numpy as np

    kind = {torch.float32: mx.float32, torch.bfloat16: mx.bfloat16, torch.float16: mx.float16}[numbers.dtype]
    weight = mx.array(numbers.float().numpy()).astype(kind)
    words, scales, biases = mx.quantize(weight, group_size=packing.group_size, bits=packing.bits)
    floats = [torch.from_numpy(np.array(t.astype(mx.float32))).to(numbers.dtype) for t in (scales, biases)]
    return torch.from_numpy(np.array(words)), *floats


def unpack(words: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(R, D) float32 of packed words."""
    shifts = torch.arange(0, 32, packing.bits, dtype=torch.int32)
    numbers = words.view(torch.int32)[..., None] >> shifts & (2**packing.bits - 1)
    grouped = numbers.flatten(1).unflatten(1, (-1, packing.group_size)).float()
    return (grouped * scales.float()[..., None] + biases.float()[..., None]).flatten(1)


def shards_of(recipes: list[Recipe], limit: int = SHARD) -> list[list[Recipe]]:
    """Consecutive recipes, together at most `limit` bytes unless one alone is larger."""
    shards: list[list[Recipe]] = [[]]
    filled = 0
    for recipe in recipes:
        if shards[-1] and filled + recipe.size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(recipe)
        filled += recipe.size
    return shards


def shard_names(count: int) -> list[str]:
    """File names as transformers expects them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def header_of(recipes: list[Recipe], layout: str) -> tuple[bytes, dict[str, int]]:
    """-> the file's first bytes, and where each output tensor starts in the file."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt" if layout == "torch" else "mlx"}}
    starts, position = {}, 0
    for recipe in recipes:
        for name, (shape, dtype) in recipe.outputs().items():
            size = math.prod(shape) * dtype.itemsize
            entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, position + size]}
            starts[name] = position
            position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, {name: 8 + len(text) + start for name, start in starts.items()}


def shard_size(recipes: list[Recipe], layout: str) -> int:
    """Bytes of a file of weights, its header included."""
    return len(header_of(recipes, layout)[0]) + sum(recipe.size for recipe in recipes)


def write_shard(path: Path, recipes: list[Recipe], layout: str, written: Callable[[int], object]) -> None:
    """Write one file under its final name, or none; `written` hears the bytes of each piece."""
    header, places = header_of(recipes, layout)
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "wb") as file:
        file.write(header)
        for recipe in recipes:
            at = {name: places[name] for name in recipe.outputs()}
            ends = {n: places[n] + math.prod(s) * d.itemsize for n, (s, d) in recipe.outputs().items()}
            for piece in recipe.pieces():
                for name, tensor in zip(at, piece, strict=True):
                    data = tensor.contiguous().view(torch.uint8).numpy().data
                    file.seek(at[name])
                    file.write(data)
                    at[name] += data.nbytes
                    written(data.nbytes)
            if at != ends:
                raise CheckpointError(f"The tensor {recipe.name} came out shorter than planned; convert again.")
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
