"""The audio memory: what is left of a recording, and the .sxl file that keeps it.

It holds the backend's keys and values together with what they mean: which stretch of the recording each
slot stands for, the schedule that made them, the recording's hash and the model's fingerprint. The file is
described in docs/memory_format.md. It knows no tensors beyond numpy arrays that a backend hands over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from speech_xl.backend import State
from speech_xl.errors import MemoryFileError, OutputError

if TYPE_CHECKING:
    from speech_xl.conversation import SpeechModel

FORMAT, VERSION = "speech-xl-memory", 1


@dataclass(frozen=True)
class RecordingSource:
    """Where a memory comes from."""

    path: str  # file name only: a memory travels without its maker's folders
    seconds: float | None  # declared by the file; None where it does not say
    seconds_heard: float
    sha256: str  # of the file's bytes


@dataclass(frozen=True)
class AudioMemory:
    """A heard recording, ready to be asked about any number of times."""

    state: State
    spans: np.ndarray  # (M, 2) int64: speech tokens [first, past the last) that each slot stands for
    ratios: tuple[int | None, ...]  # of each interval; None is raw
    interval: int  # speech tokens per interval
    tokens: int  # speech tokens heard
    prefix: tuple[int, ...]  # token ids before the audio
    recording: RecordingSource
    model: str
    fingerprint: str
    seconds_per_token: float
    bytes: int  # of keys and values, prefix included
    warnings: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """Memory length, prefix included: P + sum of m_i."""
        return len(self.prefix) + len(self.spans)

    @property
    def intervals(self) -> int:
        return len(self.ratios)

    @property
    def seconds(self) -> float:
        return self.recording.seconds_heard

    @property
    def ratio(self) -> str:
        """The ratio in words: "8", "raw", or "mixed"."""
        kinds = {"raw" if r is None else str(r) for r in self.ratios}
        return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "raw"


def save_memory(memory: AudioMemory, path: Path, model: SpeechModel) -> None:
    """Write a .sxl file under a temporary name, then rename: never half a file under `path`."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name that ends in .sxl.")
    with model.lock:
        arrays = model.backend.export_memory(memory.state)
    header = {
        "interval": memory.interval,
        "ratios": list(memory.ratios),
        "tokens": memory.tokens,
        "prefix": list(memory.prefix),
        "recording": dataclasses.asdict(memory.recording),
        "model": memory.model,
        "fingerprint": memory.fingerprint,
        "seconds_per_token": memory.seconds_per_token,
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "header": json.dumps(header)}
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
        save_file(arrays | {"spans": memory.spans}, temporary, metadata=metadata)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path} cannot be written ({reason}); choose another folder.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_header(path: Path) -> dict[str, Any]:
    """The description in a .sxl file, without its arrays; MemoryFileError if it is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise MemoryFileError(f"There is no file {path}; check the path.") from None
    except (SafetensorError, OSError) as error:
        raise MemoryFileError(
            f"{path} is damaged or no memory file ({error}); listen to the recording again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is not a Speech-XL memory; make one with `python -m speech_xl listen`.")
    if metadata.get("version") != str(VERSION):
        raise MemoryFileError(
            f"{path} has format version {metadata.get('version')}, this program reads {VERSION}; listen again."
        )
    try:
        return json.loads(metadata["header"])
    except (KeyError, ValueError) as error:
        raise MemoryFileError(f"{path} has a damaged description ({error}); listen to the recording again.") from error


def load_memory(path: Path, model: SpeechModel) -> AudioMemory:
    """Read a .sxl file into the model's backend; everything is checked, a foreign memory is refused."""
    header = read_header(path)
    if header.get("fingerprint") != model.fingerprint:
        raise MemoryFileError(
            f"{path} was made by another model ({header.get('model')}); ask that model, or listen again with this one."
        )
    d = model.config.decoder
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("keys", "values", "spans")}
        spans = arrays.pop("spans")
        prefix, ratios = tuple(header["prefix"]), tuple(header["ratios"])
        recording = RecordingSource(**header["recording"])
        shape = (d.num_hidden_layers, d.num_key_value_heads, len(prefix) + len(spans), d.head_dim)
        whole = all(a.shape == shape and np.isfinite(a).all() for a in arrays.values()) and spans.shape == (
            len(spans),
            2,
        )
        interval, tokens, seconds_per_token = header["interval"], header["tokens"], header["seconds_per_token"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise MemoryFileError(f"{path} is damaged ({error}); listen to the recording again.") from error
    if not whole or (len(spans) and spans[-1, 1] != tokens):
        raise MemoryFileError(
            f"{path} is damaged: its arrays and its description disagree; listen to the recording again."
        )
    with model.lock:
        state = model.backend.import_memory(arrays)
        size = model.backend.memory_bytes(state)
    return AudioMemory(
        state, spans, ratios, interval, tokens, prefix, recording, header["model"], header["fingerprint"],
        seconds_per_token, size,
    )  # fmt: skip
