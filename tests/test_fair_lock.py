"""The model's lock: turns go in order of arrival, and a turn given up is passed on."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from speech_xl.fair_lock import FairLock


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_whoever_waits_goes_before_whoever_comes_back() -> None:
    lock, order = FairLock(), []

    def asks(name: str) -> None:
        with lock:
            order.append(name)

    threads = [threading.Thread(target=asks, args=(name,)) for name in "ab"]
    with lock:
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            wait_until(lambda waiting=waiting: len(lock._waiting) == waiting)
        order.append("listening")
    with lock:  # at once again, as a loop would
        order.append("listening again")
    for thread in threads:
        thread.join()
    assert order == ["listening", "a", "b", "listening again"]


def test_only_one_at_a_time() -> None:
    lock, inside, most = FairLock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not lock._waiting


def test_an_interrupted_wait_leaves_the_lock_usable() -> None:
    lock = FairLock()

    def interrupt(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with lock:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(TimeoutError), lock:
                pytest.fail("the lock was given twice")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not lock._waiting
    with lock:
        pass
