"""From a path to an opened source: which foreign format it is, and one set of questions for all of them.

It knows how each format is recognised, and nothing of what is inside.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from converters.chat_template import chat_template, load_tokenizer, special_tokens
from converters.ctranslate2 import FILE, CTranslate2Model
from converters.family import Json
from converters.gguf import MAGIC, GGUFFile
from converters.source import Source, Stored, read_json, tensors_of
from speech_xl.errors import CheckpointError


class TransformersFolder:
    """config.json, safetensors or .bin files, tokenizer.json, as transformers saves them."""

    def __init__(self, path: Path):
        self.path = path

    def config(self) -> Json:
        path = self.path / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{self.path} has no config.json; it is no model folder, or half downloaded.")
        return read_json(path)

    def tensors(self) -> dict[str, Stored]:
        return tensors_of(self.path)

    def tokenizer(self) -> Tokenizer | None:
        return load_tokenizer(self.path)

    def chat_template(self) -> str | None:
        return chat_template(self.path)

    def special_tokens(self) -> Json:
        return special_tokens(self.path)

    def generation_config(self) -> Json:
        path = self.path / "generation_config.json"
        return read_json(path) if path.is_file() else {}


def open_source(path: Path) -> Source:
    """A GGUF file, a model.bin of CTranslate2 or its folder, or a folder as transformers saves it."""
    if path.is_file():
        with open(path, "rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
        if is_gguf or path.suffix.lower() == ".gguf":
            return GGUFFile(path)
        if path.suffix.lower() == ".bin":
            return CTranslate2Model(path)
        raise CheckpointError(f"{path} is neither a .gguf file nor a model.bin of CTranslate2; name a folder.")
    found = sorted(path.glob("*.gguf"))
    if found and not (path / "config.json").is_file():
        if len(found) > 1:
            raise CheckpointError(f"{path} holds several .gguf files; name one of them, {found[0].name} say.")
        return GGUFFile(found[0])
    if (path / FILE).is_file() and not is_pickle(path / FILE):
        return CTranslate2Model(path)
    return TransformersFolder(path)


def is_pickle(path: Path) -> bool:
    """PyTorch's .bin files start as zip archives or pickles do."""
    with open(path, "rb") as file:
        return file.read(2)[:1] in (b"P", b"\x80")
