"""ZeroGPU: where the `spaces` package exists, hearing and answering each borrow a GPU for as long as they need.

There, work runs in another process that shares no tensors with the page: events, text and .sxl files cross. It knows
how long work may take and nothing of pages. Everywhere else `borrow` returns None and nothing here is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from speech_xl.asking import Answer
from speech_xl.audio import probe
from speech_xl.conversation import Heard, Listening, ask
from speech_xl.memory import load_memory, save_memory
from speech_xl.model import SpeechModel
from speech_xl.schedule import Ratio

START_SECONDS = 15  # getting a GPU and moving the weights to it
TIMES_REAL_TIME = 60  # how much faster than real time a recording is heard at least
LONGEST_SECONDS = 300  # what ZeroGPU lends at a time
ANSWER_SECONDS = 20


def on_zero() -> bool:
    """Whether this is a ZeroGPU Space."""
    found = "spaces" in sys.modules or importlib.util.find_spec("spaces") is not None
    return found and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")


def listening_seconds(path: str, *_: object) -> int:
    """GPU seconds to ask for, from the recording's length."""
    seconds = probe(Path(path)).seconds
    if seconds is None:
        return LONGEST_SECONDS
    return min(LONGEST_SECONDS, START_SECONDS + round(seconds / TIMES_REAL_TIME))


class Borrowed:
    """Hearing and answering on a borrowed GPU. The model is a global of the worker, forked from this process."""

    def __init__(self, model: SpeechModel):
        gpu = importlib.import_module("spaces").GPU

        def hear(path: str, ratio: Ratio | str, budget: int | None, kept: str) -> Iterator[Heard]:
            listening = Listening(model, path, ratio, budget)
            yield from listening
            save_memory(listening.memory, Path(kept), model)

        def answer(kept: str, question: str) -> Iterator[str | Answer]:
            asking = ask(model, load_memory(Path(kept), model), question)
            yield from asking
            yield asking.answer

        self.hear = gpu(duration=listening_seconds)(hear)
        self.answer = gpu(duration=ANSWER_SECONDS)(answer)


def borrow(model: SpeechModel) -> Borrowed | None:
    return Borrowed(model) if on_zero() else None
