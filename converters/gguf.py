"""llama.cpp's GGUF files: metadata as transformers' configuration, tensors dequantized under transformers' names.

The format and its quantization types are the `gguf` library's. It knows the Llama and Qwen2 architectures, no
speech and none of our names.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, dequantize
from gguf.constants import GGML_QUANT_SIZES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from converters.family import Json, field, require
from converters.source import Stored, first_line
from speech_xl.errors import CheckpointError

MAGIC = b"GGUF"
# Entries of a list in the metadata: the library makes several objects of each. Vocabularies have 2**18.
LONGEST_LIST = 2**22
# (regular expression for their whole name, transformers' name)
NAMES = (
    (r"token_embd\.weight", "model.embed_tokens.weight"),
    (r"output_norm\.weight", "model.norm.weight"),
    (r"output\.weight", "lm_head.weight"),
    (r"blk\.(\d+)\.attn_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (r"blk\.(\d+)\.ffn_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"blk\.(\d+)\.attn_(q|k|v)\.(weight|bias)", r"model.layers.\1.self_attn.\2_proj.\3"),
    (r"blk\.(\d+)\.attn_output\.(weight|bias)", r"model.layers.\1.self_attn.o_proj.\2"),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.(weight|bias)", r"model.layers.\1.mlp.\2_proj.\3"),
)
# our reading of `tokenizer.ggml.pre`: how text is cut before pairs are merged (llama.cpp's llama-vocab.cpp)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: dict[str, list[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
CONTROL, USER_DEFINED = 3, 4  # token types that are matched whole in a text


@dataclass(frozen=True)
class Packed(Stored):
    """A quantized tensor; its rows come out as float32. `heads`: rows of q or k that llama.cpp has reordered."""

    packed_shape: tuple[int, ...] = ()
    kind: GGMLQuantizationType = GGMLQuantizationType.F32
    heads: int | None = None

    def rows(self, first: int, count: int) -> torch.Tensor:
        """`count` rows from `first` on, (count, D) float32, dequantized."""
        if self.heads is not None:  # a row's neighbours are elsewhere in the file
            return self.whole()[first : first + count]
        return self._dequantized(first, count)

    def whole(self) -> torch.Tensor:
        """The whole tensor, float32, dequantized."""
        numbers = self._dequantized(0, self.shape[0])
        return numbers if self.heads is None else unpermuted(numbers, self.heads)

    def _dequantized(self, first: int, count: int) -> torch.Tensor:
        row = math.prod(self.packed_shape[1:])
        words = self._bytes(self.start + first * row, count * row)
        return torch.from_numpy(
            np.ascontiguousarray(dequantize(as_kind(words, self.kind, (count, *self.packed_shape[1:])), self.kind))
        ).view(count, *self.shape[1:])

    def _bytes(self, start: int, size: int) -> np.ndarray:
        data = np.fromfile(self.path, np.uint8, size, offset=start)
        if len(data) != size:
            raise CheckpointError(f"{self.path} became shorter while it was read; copy or download it again.")
        return data


def as_kind(data: np.ndarray, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes as the library's `dequantize` wants them: floats as such, blocks as rows of bytes."""
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    return data.view(plain[kind]) if kind in plain else data.reshape(shape)


def unpermuted(numbers: torch.Tensor, heads: int) -> torch.Tensor:
    """(rows, ...) in transformers' order: llama.cpp pairs neighbouring rows of a head where RoPE has its halves."""
    pairs = numbers.view(heads, numbers.shape[0] // heads // 2, 2, *numbers.shape[1:])
    return pairs.transpose(1, 2).reshape(numbers.shape)


class BoundedReader(GGUFReader):
    """The library's reader, which by itself believes whatever length a list claims, and makes entries until memory is full."""

    def _get_field_parts(self, offset: int, kind: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if kind == GGUFValueType.ARRAY:
            # Type of the entries, four bytes; their number, eight; entries of a byte or more.
            length = int(self._get(offset + 4, np.uint64)[0])
            if length > min(LONGEST_LIST, len(self.data) - offset):
                raise ValueError(f"a list of {length} entries")
        return super()._get_field_parts(offset, kind)


class GGUFFile:
    """One opened file, as a source of a conversion. CheckpointError if it is damaged, cut off or unknown."""

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise CheckpointError(f"{path} is no GGUF file; copy or download it again.")
        try:
            self._reader = BoundedReader(path)
            self._values = {name: part.contents() for name, part in self._reader.fields.items()}
        except Exception as error:  # the library fails in many ways on damaged files
            if "is not a valid GGMLQuantizationType" in str(error):
                raise CheckpointError(
                    f"{path} has an unknown quantization ({first_line(error)}); take another."
                ) from None
            raise CheckpointError(f"{path} is damaged or cut off; copy or download it again.") from None
        self._kind = self._values.get("general.architecture")
        require(self._kind in ("llama", "qwen2"), f"{path} is of architecture {self._kind}; llama and qwen2 are known")

    def _value(self, name: str, default: Any = None) -> Any:
        return self._values.get(f"{self._kind}.{name}", default)

    def config(self) -> Json:
        """The metadata under transformers' names."""
        heads = self._value("attention.head_count")
        found = {
            "hidden_size": self._value("embedding_length"),
            "intermediate_size": self._value("feed_forward_length"),
            "num_hidden_layers": self._value("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._value("attention.head_count_kv", heads),
            "head_dim": self._value("attention.key_length", self._value("rope.dimension_count")),
            "rms_norm_eps": self._value("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._value("rope.freq_base"),
            "max_position_embeddings": self._value("context_length"),
            "sliding_window": self._value("attention.sliding_window"),
        }
        found = {name: number for name, number in found.items() if number is not None}
        if "rms_norm_eps" in found:  # a float32's digits: 9.999999747378752e-06 is 1e-5
            found["rms_norm_eps"] = float(np.format_float_positional(np.float32(found["rms_norm_eps"])))
        names = {tensor.name for tensor in self._reader.tensors}
        scaling = "llama3" if "rope_freqs.weight" in names else self._value("rope.scaling.type", "none")
        return found | {
            "model_type": self._kind,
            "vocab_size": len(field(self._values, "tokenizer.ggml.tokens")),
            "tie_word_embeddings": "output.weight" not in names,
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_up.bias" in names,
            "rope_scaling": {"rope_type": "default" if scaling == "none" else scaling},
            "eos_token_id": self._values.get("tokenizer.ggml.eos_token_id"),
        }

    def tensors(self) -> dict[str, Stored]:
        """Every tensor by transformers' name, or by its own where it is unknown."""
        heads = {"q": self._value("attention.head_count")}
        heads["k"] = self._value("attention.head_count_kv", heads["q"])
        found: dict[str, Stored] = {}
        for tensor in self._reader.tensors:
            name = next((m.expand(new) for old, new in NAMES if (m := re.fullmatch(old, tensor.name))), tensor.name)
            permuted = re.fullmatch(r"blk\.\d+\.attn_(q|k)\.(?:weight|bias)", tensor.name)
            shape = tuple(int(n) for n in reversed(tensor.shape))
            check_kind(self.path, tensor.name, tensor.tensor_type, shape)
            block, size = GGML_QUANT_SIZES[tensor.tensor_type]
            found[name] = Packed(
                self.path,
                shape,
                torch.float32,
                int(tensor.data_offset),
                packed_shape=(*shape[:-1], shape[-1] // block * size) if len(shape) > 1 else (shape[0], size),
                kind=tensor.tensor_type,
                heads=heads[permuted[1]] if permuted and self._kind == "llama" else None,
            )
        return found

    def tokenizer(self) -> Tokenizer:
        """The file's own vocabulary and merges."""
        kind, cut = (str(self._values.get(f"tokenizer.ggml.{name}")) for name in ("model", "pre"))
        require(kind == "gpt2", f"{self.path} has a tokenizer of the kind {kind}; byte-level BPE (gpt2) is known")
        require(cut in CUTS, f"{self.path} cuts words in the way {cut}; {', '.join(CUTS)} are known")
        tokens = field(self._values, "tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ", 1)) for pair in field(self._values, "tokenizer.ggml.merges")]
        kinds = self._values.get("tokenizer.ggml.token_type") or [1] * len(tokens)
        tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges, fuse_unk=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
        tokenizer.decoder = decoders.ByteLevel()
        if cut == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        for token, kind in zip(tokens, kinds, strict=True):
            if kind in (CONTROL, USER_DEFINED):
                tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        return tokenizer

    def chat_template(self) -> str | None:
        return self._values.get("tokenizer.chat_template")

    def special_tokens(self) -> Json:
        """bos_token and its like, as plain strings, for templates that mention them."""
        tokens = self._values.get("tokenizer.ggml.tokens", [])
        short = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        ids = {name: self._values.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in short.items()}
        return {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}

    def generation_config(self) -> Json:
        return {}


def check_kind(path: Path, name: str, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> None:
    """That the library can dequantize the type, tried on one block of zeros."""
    block, size = GGML_QUANT_SIZES[kind]
    try:
        dequantize(as_kind(np.zeros((1, size), np.uint8), kind, (1, size)), kind)
    except NotImplementedError:
        raise CheckpointError(
            f"{path}: the tensor {name} has the quantization {kind.name}, which cannot be read; take another file."
        ) from None
    require(shape[-1] % block == 0, f"the tensor {name} of {path} is no whole number of blocks")
