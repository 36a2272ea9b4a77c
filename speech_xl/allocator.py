"""Gives freed memory back to the system while a long recording is heard.

glibc keeps what is freed on its heap. Listening frees arrays that each are a little longer than the one before,
which fit into no hole that an earlier one has left: without this, a process grows by 100 MB an hour beside its memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); None where the C library is another."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        return trim
    except (OSError, AttributeError):
        return None


def release_free_memory() -> None:
    """Return unused pages of the heap to the system; does nothing where there is no glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
