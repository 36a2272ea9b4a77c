"""Where weights come from: a folder or a Hub id, its tensors by name, shape and place, read in pieces.

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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from converters.family import Json
from speech_xl.errors import CheckpointError

PIECE = 64 * 2**20  # bytes of a tensor that are in memory at a time
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "I8": torch.int8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
SAFE_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
MISTRALS_COPY = ["consolidated*", "original/*"]  # the same weights again, under other names


@dataclass(frozen=True)
class Stored:
    """One tensor of a source: where its bytes are. `loaded` is for .bin files, which torch maps by itself."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = 0
    loaded: torch.Tensor | None = field(default=None, compare=False)

    def pieces(self) -> Iterator[torch.Tensor]:
        """The tensor in consecutive blocks of rows (its first axis), each at most about PIECE bytes."""
        if not self.shape or math.prod(self.shape) == 0:
            yield self.whole()
            return
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        rows = max(1, PIECE // row)
        for first in range(0, self.shape[0], rows):
            yield self.rows(first, min(rows, self.shape[0] - first))

    def rows(self, first: int, count: int) -> torch.Tensor:
        """(count, ...) consecutive rows."""
        if self.loaded is not None:
            return self.loaded[first : first + count]
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._read(self.start + first * row, (count, *self.shape[1:]))

    def whole(self) -> torch.Tensor:
        return self.loaded if self.loaded is not None else self._read(self.start, self.shape)

    def _read(self, start: int, shape: tuple[int, ...]) -> torch.Tensor:
        size = math.prod(shape) * self.dtype.itemsize
        if not size:
            return torch.zeros(shape, dtype=self.dtype)
        data = np.fromfile(self.path, np.uint8, size, offset=start)
        if len(data) != size:
            raise CheckpointError(f"{self.path} became shorter while it was read; copy or download it again.")
        return torch.from_numpy(data).view(self.dtype).view(shape)


def read_json(path: Path) -> Json:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy or download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold one JSON object; copy or download it again.")
    return data


def tensors_of(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder, by their name: sharded or single safetensors, else .bin."""
    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        found |= read_bin(path) if path.suffix == ".bin" else read_header(path)
    index = next((folder / f"{n}.index.json" for n in INDEXED if (folder / f"{n}.index.json").is_file()), None)
    if index is not None:
        missing = sorted(set(read_json(index).get("weight_map", {})) - set(found))
        if missing:
            raise CheckpointError(f"{index} names the tensor {missing[0]}, which no shard holds; download it again.")
    return found


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
                if Path(shard).name != shard:
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
    if "-of-" in paths[0].stem and last.isdigit() and len(paths) != int(last):
        raise CheckpointError(
            f"{paths[0].parent} holds {len(paths)} of {int(last)} shards; the download is half done, run it again."
        )


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file; CheckpointError if it is cut off or damaged."""
    damaged = f"{path} is damaged or cut off; copy or download it again."
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > size - 8:
                raise CheckpointError(damaged)
            header = json.loads(file.read(length))
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            stored = Stored(path, tuple(entry["shape"]), DTYPES[entry["dtype"]], 8 + length + first)
            if math.prod(stored.shape) * stored.dtype.itemsize != last - first or not 0 <= first <= last:
                raise CheckpointError(f"{path}: the header of the tensor {name} contradicts itself; download it again.")
            if 8 + length + last > size:
                raise CheckpointError(damaged)
            found[name] = stored
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise CheckpointError(damaged) from None
    return found


def read_bin(path: Path) -> dict[str, Stored]:
    """A PyTorch state dictionary, unpickled without code; CheckpointError if it holds anything else."""
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
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(f"{path} holds no table of tensors; it cannot be converted.")
    return {name: Stored(path, tuple(t.shape), t.dtype, loaded=t.detach()) for name, t in state.items()}


def load_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6


def fetch(name: str, revision: str | None = None) -> Path:
    """A folder, or the snapshot of a Hub id (resumed if broken off); CheckpointError says why there is none."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(f"There is no folder {name}; name a folder or a Hub id owner/name.")
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(
            snapshot_download(name, revision=revision, allow_patterns=SAFE_FILES, ignore_patterns=MISTRALS_COPY)
        )
        if not list(path.glob("*.safetensors")):
            patterns = [*SAFE_FILES, "pytorch_model*.bin"]
            path = Path(
                snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=MISTRALS_COPY)
            )
        return path
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a valid Hub id ({error}).") from None
    except GatedRepoError:
        raise CheckpointError(
            f"{name} is gated; accept its terms on huggingface.co, run `hf auth login`, and convert again."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name} has no revision {revision}; look at its commits on huggingface.co.") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name} is not on this machine and the Hub cannot be reached; connect, or download it first."
        ) from None
    except HfHubHTTPError:
        raise CheckpointError(
            f"The Hub has no {name}, or it is private; check the name or run `hf auth login`."
        ) from None
    except (httpx.HTTPError, OSError) as error:
        raise CheckpointError(f"The download of {name} broke off ({error}); run it again, it continues.") from None
