"""Memory control groups of exact size, of either version, where this user may make them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")

_END_S = 60.0
"""For which processes that were killed may take to go."""

# The shell moves itself into the group, so that all of the command's memory counts there.
_ENTER = 'echo $$ > "$0" && exec "$@"'


@dataclass(frozen=True)
class Group:
    """A group that holds at most so many bytes, page cache included, and does not swap."""

    directory: Path
    version: int

    def run(
        self, command: Sequence[str], timeout: float, stdin: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the group; one that is killed for memory has the return code -9."""
        return subprocess.run(
            self.entering(command), stdin=stdin, capture_output=True, text=True, timeout=timeout
        )

    def start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command in the group; what it writes to standard error can be read."""
        return subprocess.Popen(self.entering(command), stderr=subprocess.PIPE, text=True)

    def entering(self, command: Sequence[str]) -> list[str]:
        """The command with what enters the group before it."""
        return ["sh", "-c", _ENTER, str(self.directory / "cgroup.procs"), *command]

    @property
    def peak(self) -> int:
        """The most that it held."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return int((self.directory / name).read_text())

    @property
    def kills(self) -> int:
        """How many of its processes were killed for memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return self._number(name, "oom_kill")

    @property
    def cached(self) -> int:
        """Bytes of files that were first read in it and are in memory still."""
        return self._number("memory.stat", "cache" if self.version == 1 else "file")

    def _number(self, name: str, key: str) -> int:
        lines = map(str.split, (self.directory / name).read_text().splitlines())
        return next((int(value) for found, value in lines if found == key), 0)


@contextmanager
def group(limit: int) -> Iterator[Group]:
    """A group of ``limit`` bytes; OSError, with what is wrong, where none can be made."""
    version = 2 if (_V2 / "cgroup.controllers").exists() else 1
    directory = (_V2 if version == 2 else _V1) / f"strata-test-{os.getpid()}-{limit}"
    directory.mkdir()
    try:
        if version == 1:
            (directory / "memory.limit_in_bytes").write_text(str(limit))
            (directory / "memory.swappiness").write_text("0")
        else:
            (directory / "memory.max").write_text(str(limit))
            with suppress(OSError):
                (directory / "memory.swap.max").write_text("0")
        yield Group(directory, version)
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a group, and end what was left in it, as by a time limit that ended its parent alone.
    Who is being ended is in it for a while, and not listed any longer."""
    until = time.monotonic() + _END_S
    while True:
        for number in (directory / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        try:
            directory.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.05)


def why_not() -> str | None:
    """Why no group can be made here; None if one can."""
    if sys.platform != "linux":
        return "control groups are Linux's"
    try:
        with group(64 << 20) as made:
            done = made.run(["true"], 10)
    except OSError as error:
        return f"no memory control group can be made here: {error}"
    return None if done.returncode == 0 else f"none can be entered: {done.stderr.strip()}"
