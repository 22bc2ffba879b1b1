"""Memory that is free, given back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def give_back() -> None:
    """Let the C library return free memory, of which it keeps hundreds of megabytes between passes; Linux's only."""
    trim = _trim()
    if trim is not None:
        trim(0)


def map_large() -> None:
    """Let every large array have memory of its own, which goes back at once when it is free; for the whole process.

    The C library raises the size from which it does so as arrays are freed, up to 32 MiB, and then keeps what lies between
    two smaller ones: with a block's matrices half a gigabyte.
    """
    try:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)
    except (AttributeError, OSError, TypeError):
        return


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # other systems and C libraries
        return None
