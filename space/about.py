"""What a loaded model is and what this machine can hold, for the page. Numbers come from the core."""

from __future__ import annotations

from html import escape

from speech_xl.describe import (
    FLOAT32,
    count_parameters,
    describe_speech_tokens,
    describe_ssts,
    fits_here,
    machine_memory,
    memory_per_hour,
)
from speech_xl.model import DEFAULT, SpeechModel
from speech_xl.schedule import format_bytes

SMALL = 1e9  # parameters of a language model below which little but repeating can be expected
USABLE = 0.5  # of the memory that weights leave: the rest is for the system and for work


def hours_held(model: SpeechModel) -> list[tuple[int | None, int, float]]:
    """(ratio, bytes an hour takes, hours of audio that fit this machine's memory) of every ratio."""
    weights = sum(count_parameters(model.config).values()) * FLOAT32
    free = max(0.0, USABLE * (machine_memory() - weights))
    sizes = [(r, size * model.backend.itemsize // FLOAT32) for r, size in memory_per_hour(model.config)]
    return [(ratio, size, free / size) for ratio, size in sizes]


def usual_compression(model: SpeechModel) -> str:
    """The compression that the page offers first: the checkpoint's own ratio."""
    return str(model.config.sst.default_ratio) if model.config.sst else DEFAULT


def compression_choices(model: SpeechModel) -> list[tuple[str, str]]:
    """(label, value): every ratio with the hours of audio that this machine can hold at it."""
    usual = usual_compression(model)
    choices = []
    for ratio, _, hours in hours_held(model):
        value = "raw" if ratio is None else str(ratio)
        name = "raw: keep everything" if ratio is None else f"{ratio} to 1"
        choices.append((f"{name}{' (usual)' if value == usual else ''}, {hours:,.0f} h fit here", value))
    return choices if model.config.sst else [("as little as the model's context allows", DEFAULT), *choices]


def introduction(model: SpeechModel) -> str:
    """The page's first lines: what it is for, which model answers and what that understands."""
    config = model.config
    note = f'<p class="sxl-warning" role="status">{escape(model.note)}</p>' if model.note else ""
    return (
        "<h1>Speech-XL</h1><p>Ask questions about a recording of any length. It is heard once; what is kept is a small "
        f"memory.</p><p><strong>{escape(config.name)}</strong> answers here. {escape(config.description)}</p>{note}"
    )


def limits(model: SpeechModel) -> str:
    """What not to expect of it."""
    parameters = count_parameters(model.config)["decoder"]
    doubt = "It can be wrong without a sign of doubt: play the times it shows before you rely on an answer."
    if parameters >= SMALL:
        return doubt
    return (
        f"Its language model has {parameters / 1e6:,.0f} million parameters. It finds and repeats what was said; it does not "
        f"reason, count or summarize, and it mixes up names and numbers. {doubt}"
    )


def about(model: SpeechModel, max_hours: float) -> str:
    """Model, backend and device, then what fits."""
    config = model.config
    parameters = sum(count_parameters(model.config).values())
    facts = [
        ("understands", config.description or "Its model card does not say."),
        ("its limits", limits(model)),
        ("model", f"{config.name}, {parameters / 1e6:.1f} million parameters ({model.folder.name})"),
        ("computes with", f"{model.backend.name} on {model.backend.device}"),
        ("speech tokens", describe_speech_tokens(config)),
        ("memory tokens", describe_ssts(config)),
        ("this machine", fits_here(parameters)),
        ("longest recording", f"{max_hours:g} h on this page"),
    ]
    lines = "".join(f"<tr><th scope='row'>{escape(n)}</th><td>{escape(v)}</td></tr>" for n, v in facts)
    rows = "".join(
        f"<tr><td>{'raw' if ratio is None else f'{ratio} to 1'}</td><td>{format_bytes(size)}</td><td>{hours:,.0f} h</td></tr>"
        for ratio, size, hours in hours_held(model)
    )
    return (
        f'<table class="sxl-table sxl-facts">{lines}</table>'
        '<h3 class="sxl-title">What this machine can hold</h3>'
        '<table class="sxl-table"><thead><tr><th>compression</th><th>one hour takes</th><th>fits in memory</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
