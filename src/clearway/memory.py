"""Memory that was freed goes back to the system, where the C library would keep it for itself."""

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> bool:
    """Return freed memory to the operating system; whether some was returned. Other threads run meanwhile.

    glibc keeps what was freed below a block that is in use, so that a process that once held many models would look
    as if it still did. Elsewhere this does nothing.
    """
    trim = _malloc_trim()
    return trim is not None and trim(0) == 1


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found
