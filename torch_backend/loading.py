"""Building a network whose weights come from files: nothing is drawn that would be thrown away.

On the meta device torch draws random numbers through its compiler's Python code, whose import alone takes a second. It
knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _LeftAlone(TorchFunctionMode):
    """Makes the functions of torch.nn.init do nothing."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        named = named or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else arguments[0]
        return function(*arguments, **named)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built inside have shapes and no numbers, until `load_state_dict(..., assign=True)`."""
    with _LeftAlone(), torch.device("meta"):
        yield
