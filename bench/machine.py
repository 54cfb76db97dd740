"""What a benchmark says of the machine it ran on, and the read bandwidth it compares with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import strata
from strata import _native


def describe() -> dict[str, Any]:
    """Command, processor, cores that this process may use, load, and versions."""
    return {
        "command": command(sys.argv),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
        "isas": _native.available_isas(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "strata": strata.__version__,
        "commit": commit_of(Path(__file__).parent),
    }


def command(words: Sequence[str]) -> str:
    """What was run, with paths cut to their names: where files lie says nothing to others."""
    return " ".join(Path(word).name if "/" in word else word for word in words)


def peer_version(directory: Path) -> str:
    """What llama.cpp's tools in ``directory`` say they are."""
    tool = directory / "llama-bench"
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
    return " ".join((said.stdout + said.stderr).split())


class Bandwidth:
    """Reads the same memory with all threads, to be asked in turns with what is measured."""

    def __init__(self, isa: str, threads: int, megabytes: int = 256) -> None:
        self._isa, self._threads = isa, threads
        self._data = np.ones(megabytes << 20, np.uint8)
        self._pool = ThreadPoolExecutor(threads)

    def measure(self) -> float:
        """Bytes a second, the best of three passes."""
        size = len(self._data)

        def read(thread: int) -> None:
            begin, end = size * thread // self._threads, size * (thread + 1) // self._threads
            _native.read_stream(self._isa, self._data[begin:end])

        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            list(self._pool.map(read, range(self._threads)))
            best = min(best, time.perf_counter() - start)
        return size / best


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit_of(folder: Path) -> str | None:
    """What git says is checked out in a folder, None if it does not know."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip() or None
