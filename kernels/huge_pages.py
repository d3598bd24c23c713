"""Larger pages for memory that is read from end to end, row after row.

With pages of 4 KiB a processor looks up an address for every 64 cache lines, and its prefetchers stop at the end of
each page: weights then arrive slower than memory could send them. Linux can put pages of 2 MiB under what is there
already; where it does not, nothing happens.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # the first allows it, the second (Linux 6.1) does it now


def use_huge_pages(address: int, nbytes: int) -> None:
    """Of these bytes the whole pages; what lies beside them in memory stays as it is."""
    first, last = -(-address // PAGE) * PAGE, (address + nbytes) // PAGE * PAGE
    madvise = _madvise()
    if madvise and first < last and madvise(first, last - first, _MADV_HUGEPAGE) == 0:
        madvise(first, last - first, _MADV_COLLAPSE)


@cache
def _madvise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
