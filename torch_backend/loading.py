"""Building a network whose weights come from files: nothing is drawn that would be thrown away.

On the meta device torch draws random numbers through its compiler's Python code, whose import alone takes a second. It
knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from torch_backend.linear import linear


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


def hold_together(layers: Sequence[nn.Linear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Move the weights, and the biases, of layers that read the same rows side by side -> the product with all of them.

    The layers' parameters become views, so that nothing is held twice. From then on they have to stay on their device and of
    their type.
    """

    def moved(name: str) -> torch.Tensor:
        parts = [getattr(layer, name) for layer in layers]
        whole = torch.cat([part.data for part in parts])
        for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = view
        return whole

    weight, bias = moved("weight"), None if layers[0].bias is None else moved("bias")
    return lambda x: linear(x, weight, bias)
