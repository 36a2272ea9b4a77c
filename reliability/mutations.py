"""Changes to structured inputs that a fuzzer of bytes would hardly hit upon: JSON values, and headers that still parse.

It knows JSON and the frame of safetensors files, not what is said in them.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]
STRANGE: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    2**16,
    2**31,
    2**32,
    2**53,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.5,
    -0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "0",
    "-1",
    "1e9",
    "\0",
    "\ud800",
    "é日🎙",
    "../../etc",
    "a" * 300,
    "{question}",
    "%s{}",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    [0] * 300,
]
MOST_CHANGES = 3


def mutate_json(data: bytes, dice: random.Random) -> bytes:
    """One to three values of a JSON document changed, removed or moved; ValueError where it is none."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    for _ in range(dice.randint(1, MOST_CHANGES)):
        document = _changed(document, dice)
    return json.dumps(document).encode()


def _changed(document: Any, dice: random.Random) -> Any:
    places = list(_places(document))
    if not places or dice.random() < 0.02:
        return copy.deepcopy(dice.choice(STRANGE))
    holder, key = dice.choice(places)
    how = dice.randrange(6)
    if how == 0:
        del holder[key]
    elif how == 1:  # what stands elsewhere
        other, there = dice.choice(places)
        holder[key] = json.loads(json.dumps(other[there]))
    elif how == 2:
        holder[key] = [holder[key]] * dice.choice([1, 2, 50])
    elif how == 3 and isinstance(holder[key], int | float):
        holder[key] += dice.choice([-1, 1, -holder[key] * 2, 2**31, 0.5])
    elif how == 4 and isinstance(holder[key], str):
        holder[key] = _text(holder[key], dice)
    else:
        holder[key] = copy.deepcopy(dice.choice(STRANGE))
    return document


def _text(text: str, dice: random.Random) -> str:
    """A text changed: as JSON where it holds some, else somewhere."""
    try:
        return mutate_json(text.encode(), dice).decode()
    except ValueError:
        at = dice.randint(0, len(text))
        return text[:at] + dice.choice(["", "\n", "\0", "<", "'", "é", "9" * 20]) + text[at + dice.randint(0, 3) :]


def _places(value: Any) -> Any:
    """(container, key) of every value inside."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def mutate_safetensors(data: bytes, dice: random.Random) -> bytes:
    """The header's JSON changed, and its length with it; ValueError where there is none."""
    if len(data) < 8:
        raise ValueError("no header")
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate_json(data[8 : 8 + length], dice)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def mutate_body(data: bytes, dice: random.Random) -> bytes:
    """A request's JSON behind its first line; ValueError where it has none."""
    line, _, body = data.partition(b"\n")
    return line + b"\n" + mutate_json(body, dice)
