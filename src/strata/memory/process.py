"""What this process takes, as the system counts it."""

from __future__ import annotations

import sys
from pathlib import Path

from strata.records import dataclass

_STATUS = Path("/proc/self/status")

# v1 states "no limit" as a number near 2^63, rounded down to pages.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class ProcessMemory:
    """Resident bytes: the process's own (``anonymous``) and pages of files that it has mapped,
    mostly libraries."""

    anonymous: int
    mapped: int

    @property
    def total(self) -> int:
        """All resident bytes."""
        return self.anonymous + self.mapped


def process_memory() -> ProcessMemory:
    """As of now; outside Linux the largest so far, all of it as ``anonymous``."""
    fields = _status()
    if "RssAnon" in fields:
        return ProcessMemory(fields["RssAnon"], fields["RssFile"] + fields["RssShmem"])
    return ProcessMemory(fields.get("VmRSS") or peak_bytes(), 0)


def peak_bytes() -> int:
    """Largest resident size so far in bytes: Linux's VmHWM, elsewhere what getrusage reports."""
    fields = _status()
    if "VmHWM" in fields:
        return fields["VmHWM"]
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # POSIX leaves the unit open: macOS counts bytes, the others kilobytes.
    return largest if sys.platform == "darwin" else largest * 1024


def cgroup_peak() -> int | None:
    """The most that this process's memory cgroup has held, page cache included; None if unknown,
    or if the group has no limit and so is hardly ours alone.

    Sources: the kernel's admin guides for cgroup v1 (memory.max_usage_in_bytes) and v2
    (memory.peak).
    """
    for line in _lines(Path("/proc/self/cgroup")):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "memory":
            group = Path("/sys/fs/cgroup/memory" + path)
            limit, peak = "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        elif not controllers:
            group = Path("/sys/fs/cgroup" + path)
            limit, peak = "memory.max", "memory.peak"
        else:
            continue
        found, most = _number(group / peak), _number(group / limit)
        if found is not None and most is not None and most < _UNLIMITED:
            return found
    return None


def _status() -> dict[str, int]:
    """Sizes of /proc/self/status in bytes; empty where there is none."""
    fields = {}
    for line in _lines(_STATUS):
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.split()[0]) * 1024
    return fields


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
