"""The two backends stay twins: same files, classes and public methods, in the same order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = ["encoder.py", "recognizer.py", "attention.py", "decoder.py", "memory.py", "model.py", "backend.py"]
TRANSLATED = {"__call__": "forward"}  # what a framework calls the same thing by
# MLX's CPU build and its thread need help; torch, to draw no weights, for log-sum-exp, where few rows meet large weights, to
# keep weights in 16 bits and for CUDA graphs
OWN_FILES = {"cpu.py", "graphs.py", "kernels.py", "linear.py", "loading.py", "packed.py", "worker.py"}
# MLX computes with quantized weights, torch does not; torch's network is there once its weights are packed
OWN = {("model.py", "dequantize"), ("backend.py", "model")}


def shape_of(path: Path) -> list[tuple[str, list[str]]]:
    """(class or function, its public methods) in order of appearance."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and (path.name, node.name) not in OWN:
            found.append((node.name, []))
        elif isinstance(node, ast.ClassDef):
            methods = [TRANSLATED.get(m.name, m.name) for m in node.body if isinstance(m, ast.FunctionDef)]
            found.append((node.name, [m for m in methods if not m.startswith("_") and (path.name, m) not in OWN]))
    return found


@pytest.mark.parametrize("name", FILES)
def test_twin_files_have_the_same_classes_and_methods(name: str) -> None:
    torch_shape, mlx_shape = (shape_of(ROOT / f"{b}_backend" / name) for b in ("torch", "mlx"))
    assert torch_shape == mlx_shape
    assert torch_shape


def test_no_backend_file_stands_alone() -> None:
    for backend in ("torch", "mlx"):
        names = {p.name for p in (ROOT / f"{backend}_backend").glob("*.py")} - {"__init__.py"}
        assert names - OWN_FILES == set(FILES)
