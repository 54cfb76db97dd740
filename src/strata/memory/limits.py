"""What this process may still take of the machine's memory: what is free, cut by cgroup limits.

Sources: the kernel's admin guides for cgroup v1 (memory.limit_in_bytes) and v2 (memory.max,
memory.high), and proc(5).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from strata.cgroups import cgroup_directories, text_of
from strata.records import dataclass

# v1 states "no limit" as a number near 2^63, rounded down to pages.
_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Headroom:
    """A limit above this process and the bytes that may still be taken below it; what can be
    reclaimed (page cache that nobody uses) counts as free."""

    where: str
    limit: int
    free: int


def memory_total(root: Path = Path("/")) -> int:
    """Bytes that this process can have at most: those of the machine, or what a cgroup above it
    allows; 0 where the system does not say."""
    return min((room.limit for room in headrooms(root)), default=0)


def memory_available(root: Path = Path("/")) -> int:
    """Bytes that a new process in this one's place could take; 0 where the system does not say.

    ``root`` is where /proc and /sys are looked for.
    """
    # What this process holds now would be free for the one in its place.
    held = _resident(root)
    rooms = headrooms(root)
    return min((min(room.free + held, room.limit) for room in rooms), default=0)


def memory_free(root: Path = Path("/")) -> int:
    """Bytes that may be taken beside what this process holds; 0 where the system does not say."""
    return min((room.free for room in headrooms(root)), default=0)


def headrooms(root: Path = Path("/")) -> list[Headroom]:
    """Every limit that holds for this process: the machine's memory and cgroups up the tree."""
    info = _meminfo(root)
    rooms = []
    if "MemAvailable" in info:
        rooms.append(Headroom("machine", info.get("MemTotal", 0), info["MemAvailable"]))
    elif root == Path("/") and (room := _by_sysconf()):
        rooms.append(room)
    for directory, version in cgroup_directories("memory", root):
        room = _v2(directory) if version == 2 else _v1(directory)
        if room is not None:
            rooms.append(room)
    return rooms


def _meminfo(root: Path) -> dict[str, int]:
    values = {}
    for line in text_of(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if parts and parts[0].isdigit():
            values[name] = int(parts[0]) * 1024
    return values


def _by_sysconf() -> Headroom | None:
    """The machine where there is no /proc, as in a bare chroot or on macOS; half of it counts as
    free where the system does not say."""
    names = os.sysconf_names
    if "SC_PHYS_PAGES" not in names:
        return None
    page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in names else total // 2
    return Headroom("machine", page * total, page * free) if total > 0 else None


def _resident(root: Path) -> int:
    match = re.search(r"^VmRSS:\s+(\d+) kB", text_of(root / "proc/self/status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _v2(directory: Path) -> Headroom | None:
    limits = [_number(directory / name) for name in ("memory.max", "memory.high")]
    given = [limit for limit in limits if limit is not None]
    used = _number(directory / "memory.current")
    if not given or used is None:
        return None
    return _room(directory, min(given), used, "inactive_file")


def _v1(directory: Path) -> Headroom | None:
    limit = _number(directory / "memory.limit_in_bytes")
    used = _number(directory / "memory.usage_in_bytes")
    if limit is None or limit >= _UNLIMITED or used is None:
        return None
    return _room(directory, limit, used, "total_inactive_file")


def _room(directory: Path, limit: int, used: int, reclaimable: str) -> Headroom:
    match = re.search(rf"^{reclaimable} (\d+)$", text_of(directory / "memory.stat"), re.MULTILINE)
    cache = int(match[1]) if match else 0
    return Headroom(str(directory), limit, max(0, min(limit, limit - used + cache)))


def _number(path: Path) -> int | None:
    text = text_of(path).strip()
    return int(text) if text.isdigit() else None
