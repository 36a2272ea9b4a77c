"""Commands run in forks of this process, which has imported what they need, so that a run costs its work and no start.

It knows how to kill one: after so many seconds of work, or right before one of its changes to a folder. What runs and
what comes of it is others' subject. Linux only; fork from the main thread, before this process computes anything.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a program does to names: Python tells of each right before it happens (the table of audit events in its manual).
NAMED = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.utime",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LONGEST_RUN = 600.0  # seconds, after which a command hangs


@dataclass(frozen=True)
class Kill:
    """When a run is killed: after `seconds` of processor time, or before its `change`th change to a folder, from 0.

    Processor time, because what a busy machine takes for a command says nothing of where in it a moment falls.
    """

    seconds: float | None = None
    change: int | None = None

    def __str__(self) -> str:
        return f"after {self.seconds:.3f} s" if self.change is None else f"before change {self.change}"


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int  # as a shell has it: negative for a signal
    output: str  # of stdout
    errors: str  # of stderr
    seconds: float  # of processor time
    changes: int  # to the folder; of a killed run, those before the kill

    @property
    def is_killed(self) -> bool:
        """Whether kill -9 ended it, and not the process itself."""
        return self.code == -signal.SIGKILL

    @property
    def complaint(self) -> str | None:
        """What is wrong with how a command refused its input, which is by one sentence and exit code 2; None if nothing is."""
        if "Traceback (most recent call last)" in self.errors:
            return f"a traceback:\n{self.errors[-3000:]}"
        if self.code != 2:
            return f"exit code {self.code}: {self.errors[-500:]}"
        sentences = [line for line in self.errors.splitlines() if line.strip() and "|" not in line]  # bars have pipes
        if not sentences or not sentences[-1].rstrip().endswith((".", ")")):
            return f"no sentence: {self.errors[-500:]!r}"
        return None


def warm_up(main: Callable[[], int], folder: Path, log: Path) -> None:
    """Import what `main` imports, which is found out by running it once in a fork."""
    import torch

    torch.set_num_threads(1)
    found = log.with_suffix(".modules")

    def learn() -> int:
        try:
            return main()
        finally:
            found.write_text("\n".join(sys.modules))

    ended = run(learn, folder, log)
    if ended.code != 0:
        raise RuntimeError(f"the command fails undisturbed:\n{ended.errors}")
    for name in found.read_text().splitlines():
        with contextlib.suppress(Exception):  # some are made by others, not imported
            importlib.import_module(name)
    found.unlink()


def run(
    main: Callable[[], int], folder: Path, log: Path, kill: Kill | None = None, longest: float = LONGEST_RUN
) -> Ended:
    """Run `main` in a fork. `folder` is where its changes count; stdout and stderr go to `log`.out and `log`.err."""
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reading)
        _become(main, folder, out, err, writing, None if kill is None else kill.change)
    os.close(writing)
    changes, used = 0, 0.0
    try:
        while (now := time.monotonic()) - started < longest:
            used = _processor_seconds(child)
            if kill is not None and kill.seconds is not None:
                if used >= kill.seconds:
                    break
                wait = max(0.001, kill.seconds - used)  # no process with one busy thread gets there sooner
            else:
                wait = 0.5
            if select.select([reading], [], [], min(wait, started + longest - now))[0]:
                told = os.read(reading, 65536)  # a byte a change; nothing once the child is gone
                if not told:
                    break
                changes += len(told)
        else:
            raise TimeoutError(f"the command hung for {longest:.0f} s; {err} has what it said")
    finally:
        os.close(reading)
        _end_group(child)
        _, status, usage = os.wait4(child, 0)
    return Ended(
        os.waitstatus_to_exitcode(status),
        out.read_text(errors="replace"),
        err.read_text(errors="replace"),
        usage.ru_utime + usage.ru_stime,
        changes,
    )


def _processor_seconds(child: int) -> float:
    """That a process has used; 0 where it is gone."""
    try:
        return time.clock_gettime(~child << 3 | 2)  # clock_getcpuclockid(3), which Python does not have
    except OSError:
        return 0.0


def _end_group(child: int) -> None:
    """Kill a fork, where it still runs, and what it has started."""
    for ending in (lambda: os.killpg(child, signal.SIGKILL), lambda: os.kill(child, signal.SIGKILL)):
        try:
            ending()
        except (ProcessLookupError, PermissionError):  # gone already; macOS says the latter of zombies
            continue
        return


def _become(
    main: Callable[[], int], folder: Path, out: Path, err: Path, telling: int, fatal_change: int | None
) -> None:
    """In the fork: run `main` and end."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _tell_changes(os.path.abspath(folder), telling, fatal_change)
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _tell_changes(folder: str, telling: int, fatal: int | None) -> None:
    """Write a byte to `telling` before each change of a name in `folder` or below it, or die instead of one."""
    count = 0

    def hear(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            if not (isinstance(args[2], int) and args[2] & WRITING):
                return
        elif event not in NAMED:
            return
        try:
            paths = [os.path.abspath(os.fsdecode(a)) for a in args[:2] if isinstance(a, str | bytes | os.PathLike)]
        except (TypeError, ValueError):
            return
        if not any(path == folder or path.startswith(f"{folder}{os.sep}") for path in paths):
            return
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # another thread's: the signal takes this one, too
        count += 1
        os.write(telling, b".")

    sys.addaudithook(hear)
