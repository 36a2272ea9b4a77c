"""CTranslate2's model.bin of a Whisper model: tensors under transformers' names, read where they are.

The layout is that of CTranslate2's `model_spec.py`: little-endian; u32 version, string kind, u32 revision, u32 count;
for each variable its string name, u8 rank, u32 x rank, u8 type, u32 bytes, data; then u32 aliases of two strings
each. A string is its u16 length and bytes that end in zero. It knows no decoder of ours and none of our names.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from tokenizers import Tokenizer

from converters.chat_template import load_tokenizer
from converters.family import Json, require
from converters.source import Stored, read_json
from speech_xl.errors import CheckpointError

FILE = "model.bin"
NEWEST = 6  # binary version
DTYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}
NUMBERS = (torch.float32, torch.float16, torch.bfloat16)
HEADS_OF_WIDTH = 64  # every published Whisper has heads this wide; old files do not say how many there are

# (regular expression for their whole name, transformers' names of the equal parts that it joins)
LAYER, PLACE = r"(encoder|decoder)/layer_(\d+)/", r"model.\1.layers.\2."
KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
NAMES = (
    (r"encoder/(conv[12])/({kind})", ("model.encoder.\\1.{ours}",)),
    (r"(encoder|decoder)/position_encodings/encodings", (r"model.\1.embed_positions.weight",)),
    (r"decoder/embeddings/weight", ("model.decoder.embed_tokens.weight",)),
    (r"(encoder|decoder)/layer_norm/({kind})", (r"model.\1.layer_norm.{ours}",)),
    (LAYER + "self_attention/linear_0/({kind})", tuple(PLACE + f"self_attn.{p}_proj.{{ours}}" for p in "qkv")),
    (LAYER + "self_attention/linear_1/({kind})", (PLACE + "self_attn.out_proj.{ours}",)),
    (LAYER + "self_attention/layer_norm/({kind})", (PLACE + "self_attn_layer_norm.{ours}",)),
    (LAYER + "attention/linear_0/({kind})", (PLACE + "encoder_attn.q_proj.{ours}",)),
    (LAYER + "attention/linear_1/({kind})", tuple(PLACE + f"encoder_attn.{p}_proj.{{ours}}" for p in "kv")),
    (LAYER + "attention/linear_2/({kind})", (PLACE + "encoder_attn.out_proj.{ours}",)),
    (LAYER + "attention/layer_norm/({kind})", (PLACE + "encoder_attn_layer_norm.{ours}",)),
    (LAYER + "ffn/linear_0/({kind})", (PLACE + "fc1.{ours}",)),
    (LAYER + "ffn/linear_1/({kind})", (PLACE + "fc2.{ours}",)),
    (LAYER + "ffn/layer_norm/({kind})", (PLACE + "final_layer_norm.{ours}",)),
)


def their_names(name: str) -> tuple[str, ...]:
    """transformers' names of what one variable joins; none for what is no tensor of Whisper's."""
    kind = name.rpartition("/")[2]
    for pattern, parts in NAMES:
        if match := re.fullmatch(pattern.replace("{kind}", kind), name):
            return tuple(match.expand(part.replace("{ours}", KINDS.get(kind, kind))) for part in parts)
    return ()


def read_variables(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """-> (every variable by CTranslate2's name, {alias: name}); CheckpointError if it is another file or cut off."""
    found: dict[str, Stored] = {}
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            version = take(file, "I")
            if not 1 <= version <= NEWEST:
                raise CheckpointError(
                    f"{path} is no model.bin of CTranslate2 (up to version {NEWEST}); download it again."
                )
            kind = take_string(file) if version >= 2 else "WhisperSpec"
            require(kind == "WhisperSpec", f"{path} holds a {kind[:40]!r}, not a Whisper model")
            take(file, "I")
            for _ in range(take(file, "I")):
                name = take_string(file)
                shape = tuple(take(file, "I") for _ in range(take(file, "B")))
                code, length = take(file, "B"), take(file, "I")
                if code not in DTYPES:
                    raise CheckpointError(f"{path}: {name} is of the unknown type {code}; take a float16 conversion.")
                stored = Stored(path, shape, DTYPES[code], file.tell())
                if length != math.prod(shape) * stored.dtype.itemsize or file.tell() + length > size:
                    raise CheckpointError(f"{path} is damaged or cut off; copy or download it again.")
                found[name] = stored
                file.seek(length, 1)
            aliases = {take_string(file): take_string(file) for _ in range(take(file, "I"))}
    except (OSError, struct.error, UnicodeDecodeError):
        raise CheckpointError(f"{path} is damaged or cut off; copy or download it again.") from None
    return found, aliases


def take(file: BinaryIO, kind: str) -> int:
    """The next number of a file, by its struct letter, little-endian."""
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def take_string(file: BinaryIO) -> str:
    """The next string: its length in two bytes, then UTF-8 that ends in a zero."""
    return file.read(take(file, "H")).rstrip(b"\0").decode()


class CTranslate2Model:
    """A folder with a model.bin, or the file itself, as a source of a conversion."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path / FILE if path.is_dir() else path
        self._folder = self._file.parent
        self._variables, self._aliases = read_variables(self._file)

    def tensors(self) -> dict[str, Stored]:
        """Every tensor by transformers' name: fused projections are cut into their rows."""
        found: dict[str, Stored] = {}
        for name, stored in self._variables.items():
            parts = their_names(name)
            if not parts:
                if len(stored.shape) > 1:  # settings are single numbers, and heads' numbers one row of them
                    found[name] = stored
                continue
            if stored.dtype not in NUMBERS:
                kind = str(stored.dtype).removeprefix("torch.")
                raise CheckpointError(f"{self._file} is quantized to {kind}; take a float16 or float32 conversion.")
            require(stored.shape[0] % len(parts) == 0, f"{name} of {self._file} cannot be cut into {len(parts)}")
            rows = stored.shape[0] // len(parts)
            size = rows * math.prod(stored.shape[1:]) * stored.dtype.itemsize
            for i, part in enumerate(parts):
                if part.endswith(".k_proj.bias"):  # Whisper has none; CTranslate2 stores zeros
                    continue
                found[part] = Stored(self._file, (rows, *stored.shape[1:]), stored.dtype, stored.start + i * size)
        return found

    def config(self) -> Json:
        """Whisper's configuration in transformers' names, from the tensors' shapes."""
        shapes = {name: t.shape for name, t in self._variables.items()}
        for name in (
            "encoder/conv1/weight",
            "encoder/layer_0/ffn/linear_0/weight",
            "decoder/layer_0/ffn/linear_0/weight",
            "decoder/embeddings/weight",
            "encoder/position_encodings/encodings",
            "decoder/position_encodings/encodings",
        ):
            require(name in shapes, f"{self._file} lacks {name}")
        width = shapes["encoder/conv1/weight"][0]

        def layers(side: str) -> int:
            return len({m[1] for name in shapes if (m := re.match(rf"{side}/layer_(\d+)/", name))})

        def heads(side: str) -> int:
            stored = self._variables.get(f"{side}/num_heads")
            return int(stored.whole()) if stored is not None else max(1, width // HEADS_OF_WIDTH)

        return {
            "model_type": "whisper",
            "num_mel_bins": shapes["encoder/conv1/weight"][1],
            "d_model": width,
            "encoder_layers": layers("encoder"),
            "encoder_attention_heads": heads("encoder"),
            "encoder_ffn_dim": shapes["encoder/layer_0/ffn/linear_0/weight"][0],
            "max_source_positions": shapes["encoder/position_encodings/encodings"][0],
            "vocab_size": shapes["decoder/embeddings/weight"][0],
            "decoder_layers": layers("decoder"),
            "decoder_attention_heads": heads("decoder"),
            "decoder_ffn_dim": shapes["decoder/layer_0/ffn/linear_0/weight"][0],
            "max_target_positions": shapes["decoder/position_encodings/encodings"][0],
        }

    def generation_config(self) -> Json:
        """What CTranslate2's config.json says, under transformers' names; empty where there is none."""
        path = self._folder / "config.json"
        theirs = read_json(path) if path.is_file() else {}
        names = {
            "alignment_heads": "alignment_heads",
            "suppress_tokens": "suppress_ids",
            "begin_suppress_tokens": "suppress_ids_begin",
        }
        return {ours: theirs[name] for ours, name in names.items() if name in theirs}

    def tokenizer(self) -> Tokenizer | None:
        return load_tokenizer(self._folder)

    def chat_template(self) -> None:
        return None

    def special_tokens(self) -> Json:
        return {}
