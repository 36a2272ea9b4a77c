"""config.json: a model's configuration read from it and written to it. It knows JSON and fields, no weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from speech_xl.base_parts import parts_from
from speech_xl.config import (
    AdapterConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
    PromptConfig,
    RecognizerConfig,
    SSTConfig,
)
from speech_xl.errors import CheckpointError

_PARTS = {
    "encoder": EncoderConfig,
    "adapter": AdapterConfig,
    "recognizer": RecognizerConfig,
    "decoder": DecoderConfig,
    "prompt": PromptConfig,
    "sst": SSTConfig,
}


def _tuples(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def from_dict(data: dict[str, Any]) -> ModelConfig:
    """Build a checked ModelConfig from parsed JSON; CheckpointError names a missing or unknown field."""

    def build(cls: type, values: Any, where: str) -> Any:
        if not isinstance(values, dict):
            raise CheckpointError(f"config.json: {where} must be an object.")
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise CheckpointError(f"config.json: {where} has unknown fields {', '.join(unknown)}.")
        missing = [
            f.name
            for f in known.values()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
        ]
        if missing:
            raise CheckpointError(f"config.json: {where} lacks {', '.join(missing)}.")
        try:
            return cls(**{k: _tuples(v) for k, v in values.items()})
        except RecursionError:
            raise CheckpointError(f"config.json: {where} is nested too deep.") from None

    if not isinstance(data, dict):
        raise CheckpointError("config.json must hold one JSON object.")
    top = {k: v for k, v in data.items() if k != "model_type"}
    for name, cls in _PARTS.items():
        if top.get(name) is not None:
            top[name] = build(cls, top[name], name)
    if "parts" in top:
        top["parts"] = parts_from(top["parts"])
    config: ModelConfig = build(ModelConfig, top, "the top level")
    return config


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """The JSON form; `from_dict(to_dict(c)) == c`."""
    data = {"model_type": "speech_xl", **dataclasses.asdict(config)}
    if not config.parts:  # a whole checkpoint names none
        del data["parts"]
    return data


def load_config(folder: Path) -> ModelConfig:
    """Read and check `folder`/config.json; CheckpointError if it is absent, broken or foreign."""
    path = Path(folder) / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no Speech-XL checkpoint: it has no config.json. Name a folder made by training or "
            "by python -m converters."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}). Copy the checkpoint again.") from None
    if isinstance(data, dict) and data.get("model_type") != "speech_xl":
        raise CheckpointError(
            f"{path} describes a {data.get('model_type', 'foreign')!s} model, not a Speech-XL one. "
            "Convert it first with python -m converters."
        )
    return from_dict(data)


def save_config(config: ModelConfig, folder: Path) -> None:
    """Write `folder`/config.json."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    (Path(folder) / "config.json").write_text(text, encoding="utf-8")
