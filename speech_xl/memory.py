"""The audio memory: what is left of a recording, and the .sxl file that keeps it.

It holds the backend's keys and values together with what they mean: which stretch of the recording each
slot stands for, the schedule that made them, the recording's hash and the model's fingerprint. The file is
described in docs/memory_format.md. It knows no tensors beyond numpy arrays that a backend hands over.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from speech_xl.backend import State
from speech_xl.errors import MemoryFileError, OutputError
from speech_xl.schedule import ListedRatios, PastInterval, Ratio, Scheduler, slots_kept
from speech_xl.summarizers import SUMMARIZERS
from speech_xl.whole_file import whole_file

if TYPE_CHECKING:
    from speech_xl.model import SpeechModel

FORMAT, VERSION, JOINED_VERSION = "speech-xl-memory", 2, 3  # the last one: of memories of several recordings


@dataclass(frozen=True)
class RecordingSource:
    """Where a memory comes from."""

    path: str  # file name only: a memory travels without its maker's folders
    seconds: float | None  # declared by the file; None where it does not say
    seconds_heard: float
    sha256: str  # of the file's bytes


@dataclass(frozen=True)
class MemoryPart:
    """One recording of a joined memory."""

    recording: RecordingSource
    tokens: int  # speech tokens of it


@dataclass(frozen=True)
class AudioMemory:
    """A heard recording, ready to be asked about any number of times."""

    state: State
    spans: np.ndarray  # (M, 2) int64: speech tokens [first, past the last) that each slot stands for
    times: np.ndarray  # (N, 2) float32: seconds of the recording, start and end, that each speech token stands for
    ratios: tuple[Ratio, ...]  # of each interval; None is raw
    interval: int  # speech tokens per interval
    prefix: tuple[int, ...]  # token ids before the audio
    recording: RecordingSource
    model: str
    fingerprint: str
    summarizer: str  # the rule that made the slots; see summarizers.py
    bytes: int  # of keys and values, prefix included
    warnings: tuple[str, ...] = ()  # what a listener should know of the recording, a sentence each
    text_position: int | None = None  # of a slice: where text behind it starts; None: right behind all slots
    # An interval's speech tokens [first, past the last) -> token ids of its words, once somebody asked for them. A snapshot
    # shares them with what comes after it: an interval that was still open then has other tokens later.
    recalled: dict[tuple[int, int], list[int]] = field(default_factory=dict, compare=False, repr=False)
    parts: tuple[MemoryPart, ...] = ()  # of a joined memory, see joining.py: its recordings, whose seconds go on
    readings: WeakValueDictionary[Any, AudioMemory] = field(
        default_factory=WeakValueDictionary, compare=False, repr=False
    )
    # of recalled words, by span and intervals, while somebody reads them: who asks meanwhile reads the same

    @property
    def position(self) -> int:
        """Where text behind the memory starts."""
        return self.slots if self.text_position is None else self.text_position

    @property
    def tokens(self) -> int:
        """Speech tokens heard."""
        return len(self.times)

    @property
    def slot_times(self) -> np.ndarray:
        """(M, 2) float32: start and end in seconds of what each slot stands for."""
        return np.stack([self.times[self.spans[:, 0], 0], self.times[self.spans[:, 1] - 1, 1]], axis=1)

    @property
    def slot_intervals(self) -> np.ndarray:
        """(M,) int64: the number of the interval that each slot belongs to."""
        counts = part_tokens(self.parts, self.tokens)
        starts = np.cumsum([0, *counts[:-1]])
        intervals = np.cumsum([0, *(-(-count // self.interval) for count in counts[:-1])])
        part = np.searchsorted(starts, self.spans[:, 0], side="right") - 1
        number: np.ndarray = intervals[part] + (self.spans[:, 0] - starts[part]) // self.interval
        return number

    def part_at(self, seconds: float) -> tuple[RecordingSource, float]:
        """The recording that a second of the memory lies in, and which second of that recording it is."""
        for part in self.parts[:-1]:
            if seconds < part.recording.seconds_heard:
                return part.recording, seconds
            seconds -= part.recording.seconds_heard
        return self.parts[-1].recording if self.parts else self.recording, max(0.0, seconds)

    @property
    def slots(self) -> int:
        """Memory length, prefix included: P + sum of m_i."""
        return len(self.prefix) + len(self.spans)

    @property
    def intervals(self) -> int:
        """How many were heard."""
        return len(self.ratios)

    @property
    def seconds(self) -> float:
        """Of the recording that were heard."""
        return self.recording.seconds_heard

    @property
    def ratio(self) -> str:
        """The ratio in words."""
        return ratio_in_words(self.ratios)


def ratio_in_words(ratios: tuple[Ratio, ...]) -> str:
    """The one ratio of all intervals, "8" or "raw", or "mixed"."""
    kinds = {"raw" if r is None else str(r) for r in ratios}
    return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "raw"


def part_tokens(parts: tuple[MemoryPart, ...], tokens: int) -> list[int]:
    """Speech tokens of each recording of a memory of `tokens`."""
    return [part.tokens for part in parts] or [tokens]


@dataclass(frozen=True)
class MemoryHeader:
    """What a .sxl file says about itself, checked: enough to know every slot without opening the arrays."""

    interval: int
    ratios: tuple[Ratio, ...]
    tokens: int
    prefix: tuple[int, ...]
    recording: RecordingSource
    model: str
    fingerprint: str
    summarizer: str
    warnings: tuple[str, ...]
    parts: tuple[MemoryPart, ...] = ()  # absent from a file of one recording

    @classmethod
    def from_json(cls, text: str) -> MemoryHeader:
        """Raises ValueError that names the first field which is absent or cannot be."""
        data = json.loads(text)
        is_joined = isinstance(data, dict) and "parts" in data
        data = _object(
            data if is_joined or not isinstance(data, dict) else data | {"parts": []}, "the description", cls
        )
        json.dumps(data, ensure_ascii=False).encode()  # a ValueError where something is no text
        recording = _source(data["recording"])
        for name in ("model", "fingerprint"):
            require(isinstance(data[name], str), name)
        require(data["summarizer"] in list(SUMMARIZERS), "summarizer")
        require(_is_count(data["tokens"]), "tokens")
        interval = data["interval"]
        require(_is_count(interval) and interval > 0, "interval")
        require(isinstance(data["prefix"], list) and all(map(_is_count, data["prefix"])), "prefix")
        warnings = data["warnings"]
        require(isinstance(warnings, list) and all(isinstance(w, str) for w in warnings), "warnings")
        ratios = data["ratios"]
        require(isinstance(data["parts"], list) and (len(data["parts"]) > 1 or not is_joined), "parts")
        parts = tuple(_part(part) for part in data["parts"])
        counts = part_tokens(parts, data["tokens"])
        require(sum(counts) == data["tokens"], "parts")
        require(isinstance(ratios, list) and len(ratios) == sum(-(-n // interval) for n in counts), "ratios")
        require(all(r is None or (_is_count(r) and r > 0 and interval % r == 0) for r in ratios), "ratios")
        data |= {"ratios": tuple(ratios), "prefix": tuple(data["prefix"]), "warnings": tuple(warnings)}
        return cls(**(data | {"recording": recording, "parts": parts}))

    @property
    def slots(self) -> int:
        """Memory length, prefix included, that the schedule gives."""
        return len(self.prefix) + sum(
            slots_kept(min(self.interval, tokens - i * self.interval), ratio)
            for tokens, ratios in self._schedules()
            for i, ratio in enumerate(ratios)
        )

    def spans(self) -> np.ndarray:
        """(M, 2) int64: the speech tokens of each slot, as the schedule has them."""
        plan, found, before = SUMMARIZERS[self.summarizer].plan, [np.zeros((0, 2), np.int64)], 0
        for tokens, ratios in self._schedules():
            scheduler = Scheduler(self.interval, ListedRatios(ratios or (None,)), len(self.prefix), plan)
            found.append(before + join_spans([plan.past for plan in scheduler.plan_all(tokens)]))
            before += tokens
        return np.concatenate(found)

    def _schedules(self) -> Iterator[tuple[int, tuple[Ratio, ...]]]:
        """Speech tokens and ratios of each recording."""
        ratios = self.ratios
        for tokens in part_tokens(self.parts, self.tokens):
            count = -(-tokens // self.interval)
            yield tokens, ratios[:count]
            ratios = ratios[count:]


def require(holds: bool, name: str) -> None:
    """ValueError for a field of a header."""
    if not holds:
        raise ValueError(f"{name} is not what it should be")


def _source(value: Any) -> RecordingSource:
    source = _object(value, "recording", RecordingSource)
    for name in ("path", "sha256"):
        require(isinstance(source[name], str) and "\0" not in source[name], f"recording.{name}")
    require(source["seconds"] is None or _is_amount(source["seconds"]), "recording.seconds")
    require(_is_amount(source["seconds_heard"]), "recording.seconds_heard")
    return RecordingSource(**source)


def _part(value: Any) -> MemoryPart:
    part = _object(value, "a part", MemoryPart)
    require(_is_count(part["tokens"]), "parts")
    return MemoryPart(_source(part["recording"]), part["tokens"])


def _object(value: Any, name: str, cls: type) -> dict[str, Any]:
    """`value` if it is a JSON object with exactly the fields of `cls`."""
    fields = {f.name for f in dataclasses.fields(cls)}
    if not isinstance(value, dict) or set(value) != fields:
        raise ValueError(f"{name} does not have the fields {', '.join(sorted(fields))}")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


def are_times(times: np.ndarray, tokens: int, seconds: float) -> bool:
    """Whether an array can be `AudioMemory.times` of a recording: finite, in order and inside it."""
    if times.dtype != np.float32 or times.shape != (tokens, 2) or not np.isfinite(times).all():
        return False
    starts, ends = times.T
    last = np.float32(seconds) + 0.001  # seconds are kept to a thousandth
    return bool(
        (starts >= 0).all() and (np.diff(starts) >= 0).all() and (starts <= ends).all() and (ends <= last).all()
    )


def join_spans(past: Sequence[PastInterval]) -> np.ndarray:
    """(M, 2) int64: the speech tokens that each slot of the memory stands for."""
    if not any(p.evicted for p in past):
        return np.concatenate([np.zeros((0, 2), np.int64), *[p.spans for p in past]])
    spans, prefix = np.zeros((0, 2), np.int64), past[0].base
    for p in past:
        start = p.evict_from - prefix if p.evicted else 0
        spans = np.concatenate([spans[:start], spans[start + p.evicted :], p.spans])
    return spans


def save_memory(memory: AudioMemory, path: Path, model: SpeechModel) -> None:
    """Write a .sxl file under a temporary name, then rename: never half a file under `path`."""
    if memory.text_position is not None:
        raise ValueError("a slice of a memory is for asking, not for keeping")
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name that ends in .sxl.")
    with model.lock:
        exported = model.backend.export_memory(memory.state)
    # safetensors writes an array's bytes as they lie, whatever its strides say.
    arrays = {name: np.ascontiguousarray(array) for name, array in exported.items()}
    header = {f.name: getattr(memory, f.name) for f in dataclasses.fields(MemoryHeader)}
    header["recording"] = dataclasses.asdict(memory.recording)
    header["parts"] = [dataclasses.asdict(part) for part in memory.parts]
    if not memory.parts:
        del header["parts"]
    version = JOINED_VERSION if memory.parts else VERSION
    metadata = {"format": FORMAT, "version": str(version), "header": json.dumps(header)}
    with whole_file(path) as temporary:
        save_file(arrays | {"spans": memory.spans, "times": memory.times}, temporary, metadata=metadata)


def read_header(path: Path) -> MemoryHeader:
    """The description in a .sxl file, without its arrays; MemoryFileError if it is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise MemoryFileError(f"There is no file {path}; check the path.") from None
    except (SafetensorError, OSError) as error:
        raise MemoryFileError(
            f"{path} is damaged or not a memory file ({error}); listen to the recording again."
        ) from error
    if metadata.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is not a Speech-XL memory; make one with `python -m speech_xl listen`.")
    if metadata.get("version") not in (str(VERSION), str(JOINED_VERSION)):
        raise MemoryFileError(
            f"{path} has format version {metadata.get('version')}, this program reads {VERSION} and {JOINED_VERSION}; listen again."
        )
    try:
        return MemoryHeader.from_json(metadata.get("header", ""))
    except (ValueError, RecursionError) as error:
        raise MemoryFileError(f"{path} has a damaged description ({error}); listen to the recording again.") from error


def load_memory(path: Path, model: SpeechModel) -> AudioMemory:
    """Read a .sxl file into the model's backend; everything is checked, a foreign memory is refused."""
    header = read_header(path)
    if header.fingerprint != model.fingerprint:
        raise MemoryFileError(
            f"{path} was made by another model ({header.model}); ask that model, or listen again with this one."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("keys", "values", "spans", "times")}
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a type that numpy lacks
        raise MemoryFileError(f"{path} is damaged ({error}); listen to the recording again.") from error
    spans, times = arrays.pop("spans"), arrays.pop("times")
    d = model.config.decoder
    shape = (d.num_hidden_layers, d.num_key_value_heads, header.slots, d.head_dim)
    is_whole = (
        header.interval == model.interval
        and spans.dtype == np.int64
        and len(header.prefix) + len(spans) == header.slots
        and np.array_equal(spans, header.spans())
        and header.prefix == tuple(model.prompt.prefix_ids)
        and are_times(times, header.tokens, header.recording.seconds_heard)
        and all(a.dtype in (np.float16, np.float32) and a.shape == shape for a in arrays.values())
        and all(np.isfinite(a).all() for a in arrays.values())
    )
    if not is_whole:
        raise MemoryFileError(
            f"{path} is damaged: its arrays and its description disagree; listen to the recording again."
        )
    with model.lock:
        state = model.backend.import_memory(arrays)
        size = model.backend.memory_bytes(state)
    known = {f.name: getattr(header, f.name) for f in dataclasses.fields(header) if f.name != "tokens"}
    return AudioMemory(state=state, spans=spans, times=times, bytes=size, **known)
