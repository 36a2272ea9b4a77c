"""The thread that does all MLX work of one model.

MLX destroys what belongs to a thread when that thread ends, and takes Python's lock for it. Python before 3.13 takes
a thread for ended a moment earlier, so a thread that ends with the interpreter may ask for a lock that is gone, and the
whole process aborts. This thread is left waiting instead: it finishes its work before the interpreter ends, and no more.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Worker:
    """Runs functions in order, one at a time. Its thread ends when nobody holds the worker any more."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self._jobs,), name="mlx", daemon=True).start()
        weakref.finalize(self, self._jobs.put, None).atexit = False
        _workers.add(self)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns or raises on the worker's thread."""
        future: Future[Any] = Future()
        self._jobs.put((future, function, arguments))
        return future.result()


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, function, arguments = job
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        del job, future, function, arguments  # nothing of it is kept while waiting


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    for worker in list(_workers):
        worker.run(lambda: None)
