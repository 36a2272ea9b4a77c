"""What this machine can do at best: operations a second of a matrix product, and bytes a second that are read.

Measured in the process whose work is compared with it, in the number format that the model computes in. The best of
several runs counts: whatever else the machine does only slows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from speech_xl.backend import Backend

SIZES = {"cpu": 1024, "gpu": 8192}  # rows and columns of the matrices
READ_BYTES = {"cpu": 2**27, "gpu": 2**32}  # more than any cache holds
ROUNDS = 5


def matrix_rate(backend: Backend, size: int | None = None) -> float:
    """Operations a second of (size, size) @ (size, size)."""
    size = size or SIZES[kind_of(backend)]
    return 2 * size**3 / best(backend, lambda make: (make(size, size), make(size, size)))


def read_rate(backend: Backend, size: int | None = None) -> float:
    """Bytes a second of a matrix of `size` bytes times a vector, which reads every number once."""
    size = size or READ_BYTES[kind_of(backend)]
    width = 4096
    rows = max(1, size // width // backend.itemsize)
    return rows * width * backend.itemsize / best(backend, lambda make: (make(rows, width), make(width, 1)))


def kind_of(backend: Backend) -> str:
    """Which sizes a device needs to be at its best: "cpu" or "gpu"."""
    return "cpu" if backend.device == "cpu" else "gpu"


def best(backend: Backend, operands: Callable[[Callable[[int, int], Any]], tuple[Any, Any]]) -> float:
    """Least seconds of a product on the backend's device."""
    return (_best_torch if backend.name == "torch" else _best_mlx)(backend, operands)


def _best_torch(backend: Any, operands: Callable[..., tuple[Any, Any]]) -> float:
    import torch

    wait = torch.cuda.synchronize if kind_of(backend) == "gpu" else lambda: None
    device = backend.model.decoder.embed_tokens.weight.device
    with torch.inference_mode():
        left, right = operands(lambda rows, columns: torch.rand(rows, columns, device=device).to(backend.dtype))
        seconds = []
        for _ in range(ROUNDS + 1):
            wait()
            started = time.perf_counter()
            _ = left @ right
            wait()
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _best_mlx(backend: Any, operands: Callable[..., tuple[Any, Any]]) -> float:
    import mlx.core as mx

    def work() -> float:
        left, right = operands(lambda rows, columns: mx.random.uniform(shape=(rows, columns)).astype(backend.dtype))
        mx.eval(left, right)
        seconds = []
        for _ in range(ROUNDS + 1):
            started = time.perf_counter()
            mx.eval(left @ right)
            seconds.append(time.perf_counter() - started)
        return min(seconds[1:])

    return backend._run(work)
