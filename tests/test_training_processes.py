"""Two processes train as one does: the same losses, the same weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_training import SST, STAGE, TALKS, hearing_checkpoint, metrics, tensors, write_lines

ROOT = Path(__file__).parent.parent


def run(processes: int, command: list[str]) -> None:
    """`python -m training` in so many processes, as accelerate's and torch's launchers start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if processes > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
        started.append(subprocess.Popen([sys.executable, "-m", "training", *command], cwd=ROOT, env=environment,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))  # fmt: skip
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, outputs


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_have_the_loss_of_one(tmp_path: Path) -> None:
    model = hearing_checkpoint(tmp_path / "tiny")
    data = write_lines(tmp_path / "talks.jsonl", TALKS)
    recipe = tmp_path / "recipe.json"
    stage = STAGE | {"batch": 4, "steps": 5, "lessons": [{"ratios": ["raw", 2]}]}
    recipe.write_text(json.dumps({"sst": SST, "stages": [stage]}))
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        run(processes, ["--model", str(model), "--data", str(data), "--validation", str(data), "--output", str(out),
                        "--recipe", str(recipe)])  # fmt: skip
        figures = metrics(out)
        figures.pop("speech_tokens_per_second")
        found.append((figures, tensors(out / "model")))
    (one, weights), (two, others) = found
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_allclose(list(two[name].values()), list(one[name].values()), atol=1e-5, rtol=1e-5)
    for name in weights:
        torch.testing.assert_close(others[name], weights[name], atol=1e-4, rtol=1e-4)
