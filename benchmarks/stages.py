"""Where listening spends its time: decoding, features, encoder, adapter or recogniser, decoder.

Functions are wrapped from outside, in a process that measures and does nothing else; the code that is measured knows
nothing of it. Decoding and features run on a thread of their own, so their seconds lie beside the others', not in front
of them. On a GPU, which works behind the program's back, the device is waited for before and after each stage.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.sound import RepeatingDecoder
from speech_xl.features import WindowStream
from speech_xl.quiet_windows import QuietWindowStream

FRONT = ("hear", "recognize")  # of a backend: encoder, and adapter or recogniser
WAITED_FOR = ("start", "hear_words", "close_intervals")  # what listening asks of the decoder


class Stages:
    """Seconds per stage. `synchronize`: waits for the device."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None):
        self.seconds: dict[str, float] = defaultdict(float)
        self._synchronize = synchronize
        self._inside = threading.local()

    def timed(self, stage: str, function: Callable[..., Any], waits: bool = True) -> Callable[..., Any]:
        """`function`, its seconds added to a stage; of calls inside one another on one thread the outermost counts."""

        @functools.wraps(function)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            stages = self._inside.__dict__.setdefault("stages", set())
            if stage in stages:
                return function(*arguments, **named)
            stages.add(stage)
            if waits:
                self._synchronize()
            started = time.perf_counter()
            try:
                result = function(*arguments, **named)
                if waits:
                    self._synchronize()
                return result
            finally:
                self.seconds[stage] += time.perf_counter() - started
                stages.discard(stage)

        return wrapped

    def watch_reader(self) -> None:
        """Time decoding and features of every recording that this process hears from now on."""
        blocks = RepeatingDecoder.blocks

        def timed_blocks(decoder: RepeatingDecoder) -> Iterator[np.ndarray]:
            step = self.timed("decode", functools.partial(next, blocks(decoder), None), waits=False)
            while (block := step()) is not None:
                yield block

        setattr(RepeatingDecoder, "blocks", timed_blocks)  # noqa: B010 - replaced on purpose
        for stream in (WindowStream, QuietWindowStream):
            for name in ("push", "finish"):
                setattr(stream, name, self.timed("features", getattr(stream, name), waits=False))

    def watch_backend(self, backend: Any) -> None:
        """Time what listening asks of a backend, the encoder apart from what reads its output."""
        for name in (*FRONT, *WAITED_FOR):
            if hasattr(backend, name):
                stage = "front" if name in FRONT else "decoder"
                setattr(backend, name, self.timed(stage, getattr(backend, name)))
        speech = backend.model.speech
        if backend.name == "torch":
            speech.encoder.forward = self.timed("encoder", speech.encoder.forward)
        else:
            speech.encoder = _Evaluated(self, speech.encoder)

    def report(self, has_recognizer: bool) -> dict[str, float]:
        """Seconds of each stage, in the order of the work."""
        behind = max(0.0, self.seconds["front"] - self.seconds["encoder"])
        return {
            "decode": self.seconds["decode"],
            "features": self.seconds["features"],
            "encoder": self.seconds["encoder"],
            "recognizer" if has_recognizer else "adapter": behind,
            "decoder": self.seconds["decoder"],
        }


class _Evaluated:
    """MLX's encoder, its output computed at once, or its time would be counted where the output is used."""

    def __init__(self, stages: Stages, encoder: Any):
        import mlx.core as mx

        def encode(*arguments: Any) -> Any:
            out = encoder(*arguments)
            mx.eval(out)
            return out

        self._encode = stages.timed("encoder", encode)

    def __call__(self, *arguments: Any) -> Any:
        return self._encode(*arguments)
