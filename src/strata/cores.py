"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from strata.cgroups import cgroup_directories, text_of


def usable_cores(root: Path = Path("/")) -> int:
    """Those of its affinity (or of the machine, where the system knows none), cut by the tightest
    quota of the cgroups above it; a part of a core counts as one. ``root`` is where /proc
    and /sys are looked for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = (_quota(directory, version) for directory, version in cgroup_directories("cpu", root))
    return min([cores or 1, *(quota for quota in quotas if quota is not None)])


def _quota(directory: Path, version: int) -> int | None:
    """Cores, rounded up; None without a limit."""
    if version == 2:
        words = text_of(directory / "cpu.max").split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [text_of(directory / name).strip() for name in names]
    # `max` and -1 are no limit.
    if len(words) != 2 or not all(word.isdigit() for word in words) or words[1] == "0":
        return None
    quota, period = map(int, words)
    return max(1, -(-quota // period))
