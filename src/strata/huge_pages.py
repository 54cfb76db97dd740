"""Memory into which disks read fast."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2 << 20
"""Bytes of one, in which memory for reads is taken."""


def huge_pages(nbytes: int) -> NDArray[np.uint8]:
    """Touched memory of at least so many bytes, in whole huge pages where the system has them: a
    disk writes to few large pieces of it much faster than to many small ones."""
    whole = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
    # Shared memory, which is the default, is not made of huge pages.
    mapping = mmap.mmap(-1, whole + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A system without them says no.
        with suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(mapping, np.uint8)
    start = -everything.ctypes.data % HUGE_PAGE
    buffer = everything[start : start + whole]
    buffer[:: mmap.PAGESIZE] = 1
    return buffer
