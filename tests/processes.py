"""`python -m training` in several processes on this machine, as accelerate's launcher starts them, without its start-up time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).parent.parent


def run(processes: int, command: list[str], launch: str = "ddp.yaml", killed_at: int | None = None) -> list[int]:
    """Exit codes of so many processes. With `killed_at` the last one kills itself in that step; the others are ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.runner", "tests.processes"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = settings(launch) | {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    started = []
    for rank in range(processes):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        step = killed_at if rank == processes - 1 else None
        started.append(context.Process(target=_train, args=(own, command, step), daemon=True))
        started[-1].start()
    if killed_at is not None:
        started[-1].join()
        for process in started[:-1]:
            process.join(5)  # most see the connection break
            process.kill()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def settings(launch: str) -> dict[str, str]:
    """The environment that `accelerate launch` makes of a shipped configuration, for two processes."""
    words = ["--config_file", str(ROOT / "recipes" / launch), "--num_processes", "2", "-m", "training"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    made = prepare_multi_gpu_env(arguments)
    return {name: made[name] for name in made if name.startswith(("FSDP_", "ACCELERATE_")) and name not in os.environ}


def _train(environment: dict[str, str], command: list[str], killed_at: int | None) -> None:
    os.environ.update(environment)
    import torch

    from training import loop
    from training.__main__ import main

    torch.set_num_threads(1)
    train_one = loop.Loop._train

    def killed(self: loop.Loop, *arguments: object) -> int:
        if self.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_one(self, *arguments)

    if killed_at is not None:
        loop.Loop._train = killed
    sys.exit(main(command))
