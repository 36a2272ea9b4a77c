"""Reads a checkpoint's tokenizer files and checks them against its configuration. It knows no prompt and no words."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from speech_xl.errors import CheckpointError


def load_tokenizer(folder: Path, name: str, part: str, vocab_size: int) -> Tokenizer:
    """`folder`/`name`, for the `part` of the model that knows `vocab_size` tokens.

    CheckpointError if the file is absent, broken or of a larger vocabulary.
    """
    path = Path(folder) / name
    if not path.exists():
        raise CheckpointError(f"{folder} has no {name}; copy or convert the checkpoint again.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception for any malformed file
        raise CheckpointError(f"{path} cannot be read ({error}); copy or convert the checkpoint again.") from error
    if tokenizer.get_vocab_size() > vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.get_vocab_size()} tokens where config.json's {part} knows {vocab_size}; "
            "copy or convert the checkpoint again."
        )
    return tokenizer
