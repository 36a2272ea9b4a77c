"""What loading a model does not do: draw weights, import compilers, hash what was hashed before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tests.tiny import tiny_config, tiny_model, tiny_recognizer_config
from torch_backend.loading import hold_together, without_weights
from torch_backend.model import SpeechXL

PROGRAM = """
import sys
from speech_xl.model import SpeechModel
SpeechModel.load(sys.argv[1], "torch")
print(*sys.modules)
"""


def test_loading_imports_no_compiler_and_no_library_of_features(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_checkpoint)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"torch._dynamo", "sympy", "librosa", "transformers", "gradio"} & set(loaded)


def test_layers_held_together_are_views_of_one_and_compute_the_same() -> None:
    for bias in (True, False):
        layers = [torch.nn.Linear(8, outputs, bias=bias) for outputs in (6, 2, 2)]
        x = torch.randn(3, 8)
        before = torch.cat([layer(x) for layer in layers], dim=1)
        together = hold_together(layers)
        torch.testing.assert_close(torch.cat([layer(x) for layer in layers], dim=1), before)
        torch.testing.assert_close(together(x), before)
        for name in ("weight", "bias") if bias else ("weight",):
            assert len({getattr(layer, name).untyped_storage().data_ptr() for layer in layers}) == 1


def test_a_network_without_weights_has_all_shapes() -> None:
    for config in (tiny_config(), tiny_recognizer_config()):
        with without_weights():
            empty = SpeechXL(config)
        drawn = tiny_model(config)
        assert {n: p.shape for n, p in empty.state_dict().items()} == {
            n: p.shape for n, p in drawn.state_dict().items()
        }
        assert all(p.is_meta for p in empty.parameters())
    assert not torch.nn.Linear(2, 2).weight.is_meta
