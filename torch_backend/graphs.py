"""A token of an answer with static shapes, so that a GPU can replay it as one CUDA graph instead of hundreds of launches.

What differs from token to token stands in tensors on the device: the ids, their positions, and the column of the texts'
cache that is written. Columns that are not written yet are masked. Nothing in a step waits for the device or makes a
tensor on the host. Without a graph the same step runs eagerly, on any device, and that is how it is tested: the capture
itself has never run on a GPU. It knows the decoder and its caches, no state and no text.

Letters: B batch, T columns of the texts' cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import torch

from torch_backend.decoder import Decoder
from torch_backend.memory import KeyValues, TextCache

ROOM = 128  # columns that a fixed cache has for tokens to come
WARM_UP = 3  # steps before the capture, as torch's documentation wants some: kernels are chosen and loaded in them


class Capture(Protocol):
    """What makes a graph of a piece of work that reads and writes the same tensors each time."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work once, where it can be captured later."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work without doing it, and return what does it; RuntimeError if that is impossible."""


class CudaGraphs:
    """CUDA graphs, as in "CUDA semantics" of torch's documentation: warmed up on a stream of their own."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work once on the side stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work; other threads may go on using the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
        return graph.replay


class FixedCache:
    """Keys and values (B, kv_heads, T, head_dim) of B texts in buffers that stay where they are; see TextCache."""

    def __init__(self, cache: TextCache, column: torch.Tensor):
        self._column = column  # (1,) int64, that is written next
        self._buffers = [torch.cat([p, p.new_zeros(*p.shape[:2], ROOM, p.shape[3])], dim=2) for p in cache.filled]

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one row (B, kv_heads, 1, head_dim); return all T, of which those behind it hold nothing."""
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer.index_copy_(2, self._column, new)
        keys, values = self._buffers
        return keys, values

    def filled(self, columns: int) -> TextCache:
        """The first columns, as the ordinary path goes on with them."""
        keys, values = (buffer[:, :, :columns] for buffer in self._buffers)
        return TextCache(keys, values)


class FixedSteps:
    """Reads one token of each of B texts at a time, for as long as the same texts go on and their cache has room."""

    def __init__(
        self,
        decoder: Decoder,
        memory: Sequence[KeyValues],
        caches: Sequence[TextCache],
        positions: Sequence[int],
        padding: np.ndarray,
        weighed: Collection[int],
    ):
        """positions: of each text's next token; padding (B, columns of `caches` with that token's), see text_mask."""
        device = decoder.embed_tokens.weight.device
        self.columns = padding.shape[1] - 1  # that are written
        self._length = self.columns + ROOM
        self._decoder, self._weighed = decoder, weighed
        self._memory = [layer.fork() for layer in memory]  # whose pages stay, whoever goes on writing to the memory
        self._ids = torch.zeros(len(padding), 1, dtype=torch.int64, device=device)
        self._positions = torch.tensor(positions, device=device)[:, None]
        self._column = torch.tensor([self.columns], device=device)
        self._all = torch.arange(self._length, device=device)
        self._text = torch.from_numpy(np.pad(~padding, ((0, 0), (0, ROOM - 1)), constant_values=True)).to(device)
        self._caches = [FixedCache(cache, self._column) for cache in caches]
        self._found: tuple[torch.Tensor, torch.Tensor] | None = None
        self._replay: Callable[[], None] | None = None
        self._steps = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no column for another token."""
        return self.columns == self._length

    def caches(self) -> list[TextCache]:
        """Of all tokens that were read."""
        return [cache.filled(self.columns) for cache in self._caches]

    def _step(self) -> None:
        """The work that is captured."""
        # A text's own token is never padding, so every row sees at least itself.
        mask = (self._text & (self._all <= self._column))[:, None, None]
        rotation = self._decoder.rotation(self._positions)
        self._found = self._decoder.text(self._ids, rotation, self._memory, self._caches, mask, self._weighed)
        self._positions += 1
        self._column += 1

    def read(self, tokens: Sequence[int], capture: Capture) -> tuple[torch.Tensor, torch.Tensor]:
        """One token of each text -> as Decoder.text. The result is overwritten by the next step. RuntimeError: no graph."""
        self._ids.copy_(torch.tensor(tokens)[:, None])
        if self._steps == WARM_UP:
            self._replay = capture.capture(self._step)
        if self._replay is None:
            capture.warm_up(self._step)
        else:
            self._replay()
        self._steps += 1
        self.columns += 1
        assert self._found is not None
        return self._found


class Steps:
    """What an answer's tokens are read with: fixed steps where a graph can be made of them, else nothing."""

    def __init__(
        self, decoder: Decoder, memory: Sequence[KeyValues], weighed: Collection[int], capture: Capture | None
    ):
        self._decoder, self._memory, self._weighed = decoder, memory, weighed
        self.capture = capture  # None: there is none, or it was tried and failed
        self._fixed: FixedSteps | None = None

    def read(
        self, tokens: Sequence[int], positions: Sequence[int], caches: list[TextCache], padding: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """One token of each text, or None where the ordinary path has to read it, from `caches`.

        positions, padding: as FixedSteps takes them. `caches` are brought up to date by `put_back`.
        """
        if self.capture is None:
            return None
        if self._fixed is not None and self._fixed.is_full:
            self.put_back(caches)
        if self._fixed is None:
            self._fixed = FixedSteps(self._decoder, self._memory, caches, positions, padding, self._weighed)
        try:
            return self._fixed.read(tokens, self.capture)
        except RuntimeError as error:
            logging.getLogger(__name__).warning(
                "No CUDA graph of a token can be made, tokens are read without: %s", error
            )
            self.capture = None
            self.put_back(caches)
            return None

    def put_back(self, caches: list[TextCache]) -> None:
        """End the fixed steps, if there are any: `caches` becomes what was read, and may be changed."""
        if self._fixed is not None:
            caches[:] = self._fixed.caches()
            self._fixed = None
