"""All MLX work of a model has one thread, which ends with the model, and never together with the interpreter."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest

from mlx_backend.worker import Worker

AT_EXIT = """
import atexit, threading, time

@atexit.register  # before the worker's, so it is called behind it
def say_whether_it_waits():
    print("waits" if "mlx" in (thread.name for thread in threading.enumerate()) else "ended")

from mlx_backend.worker import Worker
worker = Worker()
threading.Thread(target=worker.run, args=(lambda: (time.sleep(0.2), print("worked")),), daemon=True).start()
time.sleep(0.05)
"""


def test_work_is_done_in_order_on_one_thread() -> None:
    worker = Worker()
    threads = {worker.run(threading.get_ident) for _ in range(3)}
    assert len(threads) == 1 and threads != {threading.get_ident()}


def test_errors_arrive_and_work_goes_on() -> None:
    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 / 0)
    assert worker.run(max, 1, 2) == 2


def test_the_thread_ends_when_nobody_holds_the_worker() -> None:
    worker = Worker()
    thread = worker.run(threading.current_thread)
    del worker
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_nothing_of_the_work_is_kept_while_the_thread_waits() -> None:
    class Large:
        pass

    worker, large = Worker(), Large()
    worker.run(lambda _: None, large)
    deadline = time.monotonic() + 10
    while sys.getrefcount(large) > 2 and time.monotonic() < deadline:  # the thread lets go right after it answered
        time.sleep(0.001)
    assert sys.getrefcount(large) == 2


def test_at_exit_work_is_finished_and_the_thread_is_left_waiting() -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "worked\nwaits\n", "")
