"""What a batch is made with: everything that its results depend on, checked before anything is heard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from speech_xl.checkpoints import (
    EMBEDDED,
    EMBEDDED_FOLDER,
    SHIPPED_NAMES,
    SMALL,
    check_checkpoint,
    find_folder,
    fingerprint,
    resolve_checkpoint,
    resolve_default,
)
from speech_xl.config import ModelConfig
from speech_xl.errors import CheckpointError
from speech_xl.model import SpeechModel
from speech_xl.prompt import Prompt
from speech_xl.schedule import Ratio


@dataclass(frozen=True)
class FoundModel:
    """What is known of a model before its weights are loaded."""

    name: str  # by which every process finds it
    fingerprint: str  # of its weights
    config: ModelConfig


@dataclass(frozen=True)
class Settings:
    """`ratio` may be DEFAULT, see SpeechModel."""

    model: FoundModel
    backend: str
    ratio: Ratio | str
    memory_budget: int | None  # bytes
    summarizer: str
    memory_bits: int
    max_tokens: int  # of one answer

    def kept(self) -> dict[str, Any]:
        """What must be the same for results to stand in one file: not the backend, and not where the model lies."""
        return {
            "model": f"{self.model.config.name} ({self.model.fingerprint[:12]})",
            "ratio": self.ratio,
            "memory_budget": self.memory_budget,
            "summarizer": self.summarizer,
            "memory_bits": self.memory_bits,
            "max_tokens": self.max_tokens,
        }

    def load_model(self) -> SpeechModel:
        """CheckpointError if what this machine has under the model's name is another model."""
        model = SpeechModel.load(self.model.name, self.backend, self.memory_bits)
        if model.fingerprint != self.model.fingerprint:
            raise CheckpointError(f"{self.model.name} is another model on one of the machines; bring one to all.")
        return model


def find_model(model: str | None) -> tuple[FoundModel, Prompt, str | None]:
    """Of a name as on the command line -> (model, its prompt, a line for the user); CheckpointError where there is none."""
    note = None
    if model is None:
        folder, note = resolve_default()
        model = EMBEDDED if folder == EMBEDDED_FOLDER else SMALL
    else:
        folder = resolve_checkpoint(model)
    config = check_checkpoint(folder)
    own = None if model in SHIPPED_NAMES else find_folder(model)
    name = str(own.resolve()) if own else model
    return FoundModel(name, fingerprint(folder), config), Prompt.load(folder, config), note
