"""ZeroGPU: where the `spaces` package exists, hearing, answering and transcribing each borrow a GPU for a while.

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
from speech_xl.memory import load_memory, read_header, save_memory
from speech_xl.model import SpeechModel
from speech_xl.schedule import Ratio
from speech_xl.transcript import Segment, transcribe

START_SECONDS = 15  # getting a GPU and moving the weights to it
TIMES_REAL_TIME = 60  # how much faster than real time a recording is heard or read back at least
LONGEST_SECONDS = 300  # what ZeroGPU lends at a time
ANSWER_SECONDS = 20


def on_zero() -> bool:
    """Whether this is a ZeroGPU Space."""
    found = "spaces" in sys.modules or importlib.util.find_spec("spaces") is not None
    return found and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")


def listening_seconds(path: str, *_: object) -> int:
    """GPU seconds to ask for, from the recording's length."""
    seconds = probe(Path(path)).seconds
    return LONGEST_SECONDS if seconds is None else _borrowed_seconds(seconds)


def transcribing_seconds(kept: str) -> int:
    """GPU seconds to ask for, from the length of what a memory is of."""
    return _borrowed_seconds(read_header(Path(kept)).recording.seconds_heard)


def _borrowed_seconds(heard: float) -> int:
    return min(LONGEST_SECONDS, START_SECONDS + round(heard / TIMES_REAL_TIME))


class Borrowed:
    """Hearing, answering and transcribing on a borrowed GPU. The model is a global of the worker, forked from this process."""

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

        def read_back(kept: str) -> Iterator[Segment]:
            yield from transcribe(model, load_memory(Path(kept), model))

        self.hear = gpu(duration=listening_seconds)(hear)
        self.answer = gpu(duration=ANSWER_SECONDS)(answer)
        self.transcribe = gpu(duration=transcribing_seconds)(read_back)


def borrow(model: SpeechModel) -> Borrowed | None:
    """The model behind functions that run on a lent GPU, on a Space with ZeroGPU; None elsewhere."""
    return Borrowed(model) if on_zero() else None
