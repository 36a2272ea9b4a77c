"""The product for few rows is the usual one, whatever the shapes and layouts, and goes backwards like it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torch_backend import linear as module
from torch_backend.linear import LARGE, ROWS, Linear, linear

INPUTS = 512
OUTPUTS = LARGE // INPUTS  # the least that is large


@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 3), (2, 2), (5,), (3, 11), (ROWS[-1] + 1,), (0,)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("outputs", [OUTPUTS, 3])
def test_it_is_the_usual_product(shape: tuple[int, ...], has_bias: bool, outputs: int) -> None:
    torch.manual_seed(0)
    layer = Linear(INPUTS, outputs, bias=has_bias)
    x = torch.randn(INPUTS, *shape).movedim(0, -1)  # not contiguous
    found, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    assert found.is_contiguous() and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_its_gradients_are_the_usual_ones() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(OUTPUTS, INPUTS, requires_grad=True), torch.randn(1, INPUTS, requires_grad=True)
    found = torch.autograd.grad(linear(x, weight).square().sum(), (weight, x))
    expected = torch.autograd.grad(F.linear(x, weight).square().sum(), (weight, x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "rows, dtype, is_usual", [(1, torch.float32, False), (ROWS[-1] + 1, torch.float32, True), (1, torch.float64, True)]
)
def test_what_gains_nothing_takes_the_usual_product(
    rows: int, dtype: torch.dtype, is_usual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Usual:
        @staticmethod
        def linear(x: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
            calls.append(1)
            return F.linear(x, *rest)

        pad = F.pad

    monkeypatch.setattr(module, "F", Usual)
    linear(torch.ones(rows, INPUTS, dtype=dtype), torch.ones(OUTPUTS, INPUTS, dtype=dtype))
    assert bool(calls) == is_usual
