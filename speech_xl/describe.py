"""What a path is, in words: a recording, a memory or a checkpoint. Used by `info`; loads no weights."""

from __future__ import annotations

import math
import os
from pathlib import Path

from speech_xl.audio import probe
from speech_xl.base_parts import BasePart
from speech_xl.checkpoints import check_checkpoint, expected_tensors
from speech_xl.config import SAMPLING_RATE, ModelConfig
from speech_xl.memory import read_header
from speech_xl.schedule import format_bytes, memory_slots
from speech_xl.summarizers import interval_of, ratios_of

FLOAT32 = 4  # bytes: what a CPU computes in
PARTS = {
    "encoder": "speech.encoder.",
    "adapter": "speech.adapter.",
    "recognizer": "speech.recognizer.",
    "SSTs": "sst_",
    "decoder": "decoder.",
}


def describe(path: Path) -> list[tuple[str, str]]:
    """(name, value) lines about `path`; a SpeechXLError says why it cannot be described."""
    if path.is_dir():
        return describe_checkpoint(path)
    if path.suffix.lower() == ".sxl":
        return describe_memory(path)
    return describe_recording(path)


def describe_recording(path: Path) -> list[tuple[str, str]]:
    """(subject, value) lines of a file of sound, from its header."""
    info = probe(path)
    length = "unknown" if info.seconds is None else f"{info.seconds:.2f} s"
    return [
        ("recording", str(path)),
        ("format", info.format),
        ("length", length),
        ("sampling rate", f"{info.sampling_rate or 'unknown'} Hz"),
        ("channels", str(info.channels or "unknown")),
    ]


def describe_memory(path: Path) -> list[tuple[str, str]]:
    """(subject, value) lines of a .sxl file, from its header."""
    header = read_header(path)
    source = header.recording
    parts = [
        (f"recording {n}", f"{p.recording.path}, {p.recording.seconds_heard:g} s heard")
        for n, p in enumerate(header.parts, 1)
    ]
    return [
        ("memory", str(path)),
        ("of", f"{source.path}, {source.seconds_heard:g} s heard, sha256 {source.sha256}"),
        *parts,
        ("model", f"{header.model} ({header.fingerprint[:12]})"),
        ("intervals", f"{len(header.ratios)} of {header.interval} speech tokens"),
        ("summarizer", header.summarizer),
        ("ratios", ", ".join(sorted({str(r or "raw") for r in header.ratios})) or "none"),
        ("slots", f"{header.slots} for {header.tokens} speech tokens"),
        ("file", format_bytes(path.stat().st_size)),
    ]


def describe_checkpoint(folder: Path) -> list[tuple[str, str]]:
    """(subject, value) lines of a checkpoint, from its configuration and its files' headers."""
    config = check_checkpoint(folder)
    e, d = config.encoder, config.decoder
    counts = count_parameters(config)
    lines = [
        ("checkpoint", f"{config.name} in {folder}"),
        ("understands", config.description or "not said"),
        (
            "encoder",
            f"{e.encoder_layers} layers of {e.d_model}, {e.num_mel_bins} mel bins, windows of {e.window_frames / 100:g} s",
        ),
        (
            "decoder",
            f"{d.num_hidden_layers} layers of {d.hidden_size}, {d.num_attention_heads} heads, "
            f"{d.num_key_value_heads} for keys and values, vocabulary {d.vocab_size}",
        ),
        ("speech tokens", describe_speech_tokens(config)),
        ("parameters", f"{sum(counts.values()):,} (" + ", ".join(f"{n} {c:,}" for n, c in counts.items() if c) + ")"),
        ("weights", config.dtype + (f", decoder in {config.quantization['bits']} bits" if config.quantization else "")),
        ("SSTs", describe_ssts(config)),
    ]
    lines += [("base part", describe_part(part)) for part in config.parts]
    most = "" if config.recognizer is None else "at most about "
    for ratio, size in memory_per_hour(config):
        lines.append(
            (
                f"memory per hour, {'raw' if ratio is None else f'ratio {ratio}'}",
                f"{most}{format_bytes(size)} in float32",
            )
        )
    lines.append(("this machine", fits_here(sum(counts.values()))))
    return lines


def describe_part(part: BasePart) -> str:
    """Whose it is, its licence, and where it is fetched from."""
    sources = dict.fromkeys(str(source) for file in part.files for source in file.sources)
    whose = f"{part.name} of {part.origin}, licence {part.license}, {format_bytes(part.size)} ({part.format})"
    return f"{whose}; from {', else '.join(sources)}"


def describe_speech_tokens(config: ModelConfig) -> str:
    """Where a model's speech tokens come from, and how many."""
    if config.recognizer is not None:
        return "the words that are said, about 3 tokens per second; none during silence"
    return f"{1 / config.seconds_per_token:g} a second"


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, as if none were packed into fewer bits."""
    counts = dict.fromkeys(PARTS, 0)
    for name, shape in expected_tensors(config).items():
        part = next(part for part, mark in PARTS.items() if mark in name)
        counts[part] += math.prod(shape)
    return counts


def describe_ssts(config: ModelConfig) -> str:
    """What Speech Summarization Tokens a checkpoint has."""
    if config.sst is None:
        return "none: --summarizer auto chooses a rule that needs no training"
    s = config.sst
    state = "trained" if s.trained else "freshly initialised, not trained"
    return f"{state}, intervals of {s.interval} speech tokens, ratios {', '.join(map(str, s.ratios))} (usually {s.default_ratio})"


def memory_per_hour(config: ModelConfig) -> list[tuple[int | None, int]]:
    """(ratio, bytes) of one hour's keys and values in float32."""
    tokens = config.tokens_for(3600 * SAMPLING_RATE)
    interval = interval_of(config)
    return [
        (r, memory_slots(tokens, interval, r) * config.kv_values_per_slot * FLOAT32) for r in (None, *ratios_of(config))
    ]


def fits_here(parameters: int) -> str:
    """Whether the weights fit this machine's memory as a CPU computes with them, in words."""
    needed, total = parameters * FLOAT32, machine_memory()
    verdict = "can hold it" if needed < 0.8 * total else "is too small for it"
    return f"{verdict}: {format_bytes(needed)} of weights in float32, {format_bytes(total)} of memory"


def machine_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
