"""The cgroups that hold for this process, as the kernel's admin guides describe them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


def cgroup_directories(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """This process's group and those above it, up to the mount point, each with its version (1 or
    2), as far as they have ``controller``. ``root`` is where /proc and /sys are looked for."""
    mounts = _mounts(controller, root)
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        for mounted, at in mounts.get(version, []):
            # Inside a container the mount may show only the part of the tree below `mounted`.
            relative = (
                path.removeprefix(mounted).lstrip("/") if mounted != "/" else path.lstrip("/")
            )
            directory = at / relative
            if not directory.is_dir():
                directory = at
            while True:
                yield directory, version
                if directory == at:
                    break
                directory = directory.parent


def text_of(path: Path) -> str:
    """The text of a file of the kernel's; empty where there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _mounts(controller: str, root: Path) -> dict[int, list[tuple[str, Path]]]:
    """cgroup version -> (path within the hierarchy, where it is mounted)."""
    found: dict[int, list[tuple[str, Path]]] = {}
    for line in text_of(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        point = _OCTAL.sub(lambda m: chr(int(m[1], 8)), fields[4])
        if kinds[0] == "cgroup2":
            found.setdefault(2, []).append((fields[3], root / point.lstrip("/")))
        elif kinds[0] == "cgroup" and controller in kinds[2].split(","):
            found.setdefault(1, []).append((fields[3], root / point.lstrip("/")))
    return found
