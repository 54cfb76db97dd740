"""The most memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int:
    """Largest resident size so far in bytes: Linux's VmHWM, elsewhere what getrusage reports."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # POSIX leaves the unit open: macOS counts bytes, the others kilobytes.
    return largest if sys.platform == "darwin" else largest * 1024
