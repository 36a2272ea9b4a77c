"""What a backend is, and how one is chosen.

A backend executes plans: it turns log-mel windows into speech tokens, runs intervals, keeps keys and
values, and scores the next text token. It takes no decision about lengths, ratios, positions or stopping;
those are the core's. A third backend is one more folder with a `backend.py` and one more line in BACKENDS:
nothing else in this project knows which backends there are.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from speech_xl.config import ModelConfig
from speech_xl.errors import BackendError
from speech_xl.sampling import Choose
from speech_xl.schedule import IntervalPlan
from speech_xl.storage import MemoryStorage

State = Any  # a backend's own: memory so far, and speech tokens that wait for their interval to fill


class Step(NamedTuple):
    """One step of an answer."""

    token: int
    slot_weights: np.ndarray  # (M,) float32: attention of the row that chose the token to each memory slot


class Recognition(NamedTuple):
    """What a recogniser read in one window (T tokens, S encoder positions)."""

    ids: list[int]  # of recognizer_tokenizer.json; start and end left out
    attention: np.ndarray  # (T + 1, S) float32: where each chosen token was looked for; (T, S) if no end came
    no_speech: float  # probability that nobody speaks
    mean_log_prob: float  # of the chosen tokens, the end included


class Backend(Protocol):
    """Tensor operations for one loaded model. Not thread-safe: one caller at a time."""

    name: str  # as it is registered in BACKENDS
    device: str  # in words, e.g. "cpu", "cuda (NVIDIA H200)", "gpu (Apple M3)"
    config: ModelConfig
    itemsize: int  # bytes of one number as the model computes
    storage: MemoryStorage  # how the memory keeps them

    @classmethod
    def load(cls, folder: Path, config: ModelConfig, memory_bits: int = 16) -> Backend:
        """Load a checkpoint folder that checkpoints.py has already checked, either layout, quantized or not."""

    def start(self, prefix: list[int]) -> State:
        """A fresh state whose memory holds the key/values of the prefix tokens at positions 0..P-1."""

    def hear(self, parts: Sequence[tuple[State, list[int]]], mel: np.ndarray, valid_positions: np.ndarray) -> None:
        """Encode windows of one or more recordings in one batch and queue speech tokens. Only where config.adapter is set.

        mel (B, num_mel_bins, T) float32; valid_positions (B,) int64, encoder positions that hold sound. `parts`: of each
        recording its state, and how many of the first speech tokens of each of its windows; the windows lie in that order.
        """

    def recognize(self, mel: np.ndarray, before: Sequence[Sequence[int]] = ()) -> list[Recognition]:
        """Encode windows, mel (B, num_mel_bins, T) float32, and read each aloud. Only where config.recognizer is set.

        `before`: of each window the token ids that stand in front of the recogniser's start ids, as many for all; none of
        them if it is empty.
        """

    def hear_words(self, state: State, ids: list[int]) -> None:
        """Queue the decoder's own embeddings of recognised words as speech tokens."""

    def close_intervals(self, parts: Sequence[tuple[State, Sequence[IntervalPlan]]]) -> None:
        """Run the first queued speech tokens of each state as intervals, all in one batch; append what they leave to their
        own state, in their order.

        `parts`: a batch of interval_batches.py, each state once.
        """

    def fork(self, state: State) -> State:
        """Another state of the same memory, at no cost: what is done to one is never seen by the other."""

    def slice(self, state: State, prefix: int, first: int, last: int) -> State:
        """The first `prefix` rows and slots [first, last) behind them, shared with `state`; nothing queued.

        Keys stay as they were rotated, so text behind it starts at position prefix + last.
        """

    def join(self, state: State, other: State, prefix: int) -> State:
        """The rows of `state` and behind them those of `other`, its first `prefix` ones left out; nothing queued.

        Keys of `other` are turned to where they now stand. Both stay as they were, and share what they hold with it.
        """

    def answer(self, state: State, ids: list[int], position: int, choose: Choose | None = None) -> Generator[Step]:
        """Read the text `ids` at `position` behind the memory and go on, without end: greedily, or as `choose` picks.

        The state is not changed; the caller stops the iteration.
        """

    def answer_together(
        self, state: State, texts: Sequence[list[int]], position: int, end_ids: Collection[int]
    ) -> Generator[dict[int, Step]]:
        """Several texts read and gone on from greedily as `answer` does with each, in one batch that shares the memory.

        Each item has the next step of every text that is not over, by its number. A text is over with the step of an end
        token; the iteration ends when all are.
        """

    def logits(self, state: State, ids: list[int], position: int) -> np.ndarray:
        """(vocab_size,) float32: scores of the token behind the text `ids`, read at `position` as `answer` does."""

    def answer_spans(
        self,
        state: State,
        prefix: int,
        spans: list[tuple[int, int]],
        ids: list[int],
        end_ids: Collection[int],
        longest: int,
    ) -> list[list[int]]:
        """The same text asked of several slices at once -> the greedy answer to each, up to an end token.

        What slots [first, last) answer is what their `slice` would, at position prefix + last. An answer has at
        most `longest` (1 or more) tokens and holds no end token.
        """

    def memory_bytes(self, state: State) -> int:
        """Bytes of the keys and values in the memory, prefix included, without allocation slack."""

    def export_memory(self, state: State) -> dict[str, np.ndarray]:
        """{"keys", "values"}: (layers, kv_heads, P + M, head_dim) arrays, float32 or float16."""

    def import_memory(self, arrays: dict[str, np.ndarray]) -> State:
        """A state with that memory and nothing queued."""


@dataclass(frozen=True)
class Library:
    """A shared library for Linux that a framework is far slower without."""

    name: str
    file: str  # as the loader knows it
    loss: str  # what its absence costs, a clause
    install: str


@dataclass(frozen=True)
class Registration:
    """What is known of a backend before it is imported."""

    module: str  # that holds its class `Backend`
    framework: str  # the package that it needs, by the name that it is imported and installed under
    install: str  # how to get that package, as words for the middle of a sentence
    layout: str = "torch"  # of speech_xl.config_check.LAYOUTS: the axis order that needs no translation
    home: tuple[str, str] | None = None  # platform.system() and platform.machine() of the machines it is made for
    library: Library | None = None


OPENBLAS = Library(
    "OpenBLAS", "libopenblas.so.0", "MLX is 10 to 20 times slower without it", "apt-get install libopenblas0-pthread"
)
BACKENDS = {  # the first one that is installed is chosen, but where another is at home
    "torch": Registration("torch_backend.backend", "torch", "pip install torch==2.13.0"),
    "mlx": Registration(
        "mlx_backend.backend",
        "mlx",
        "pip install mlx on a Mac with Apple Silicon, or pip install 'mlx[cpu]' on Linux",
        layout="mlx",
        home=("Darwin", "arm64"),
        library=OPENBLAS,
    ),
}


def is_installed(name: str) -> bool:
    """Whether the framework of a backend can be found, without importing it."""
    return importlib.util.find_spec(BACKENDS[name].framework) is not None


def install_hint(name: str) -> str:
    """How to install the framework of a backend, as words for the middle of a sentence."""
    return BACKENDS[name].install


def choose_backend(name: str = "auto") -> tuple[str, str]:
    """-> (backend's name, one sentence why). "auto" is MLX on Apple Silicon where it is installed, else torch."""
    if name in BACKENDS:
        if not is_installed(name):
            raise BackendError(f"The {name} backend needs a package that is not installed; {install_hint(name)}.")
        return name, "it was asked for"
    if name != "auto":
        raise BackendError(f"There is no backend called {name!r}; choose auto, {' or '.join(BACKENDS)}.")
    installed = [n for n in BACKENDS if is_installed(n)]
    if not installed:
        raise BackendError(f"No backend is installed; {', or '.join(map(install_hint, BACKENDS))}.")
    here = (platform.system(), platform.machine())
    for candidate in installed:
        if BACKENDS[candidate].home == here:
            return candidate, "it is made for this kind of machine"
    return installed[0], f"it is the first of {', '.join(BACKENDS)} that is installed"


def backend_for_layout(layout: str) -> str:
    """An installed backend that computes with checkpoints of that layout as they are, or else the one of "auto"."""
    fitting = (n for n in BACKENDS if BACKENDS[n].layout == layout and is_installed(n))
    return next(fitting, None) or choose_backend()[0]


def load_backend(name: str, folder: Path, config: ModelConfig, memory_bits: int = 16) -> Backend:
    """Import backend `name` ("auto" included) and load a checkpoint folder into it."""
    chosen, _ = choose_backend(name)
    try:
        module = importlib.import_module(BACKENDS[chosen].module)
    except ImportError as error:
        raise BackendError(f"The {chosen} backend does not start here ({error}); {install_hint(chosen)}.") from error
    loaded: Backend = module.Backend.load(folder, config, memory_bits)
    return loaded
