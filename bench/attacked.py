"""Runs one attack at a time in a process of its own, with bounds of memory and time, and says what
it ended in. Attacks are made from a number alone, so that each can be had again.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from strata.errors import StrataError
from strata.memory import peak_bytes, process_memory

SECONDS = 10
WAITED_S = 120.0
"""Of processor time, and of any: others may have the machine meanwhile."""

MOST_BYTES = 300_000_000
_ADDRESS_SPACE = 3_000_000_000
_MOST_TOLD = 4000


@dataclass(frozen=True)
class Ending:
    """``kind`` is "answer", "error" (a named one) or what else happened; ``nbytes`` is by how much
    the process grew at most, ``seconds`` are of processor time."""

    kind: str
    message: str
    seconds: float
    nbytes: int

    @property
    def allowed(self) -> bool:
        """A right answer or a named error, within the bounds."""
        return self.kind in ("answer", "error")


def run_apart(attack: Callable[[], object]) -> Ending:
    """Call ``attack`` in a fork of this process, which must have no threads of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(attack, writing)
    os.close(writing)
    told = _read(reading, time.perf_counter() + WAITED_S)
    os.close(reading)
    if told is None:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    if told is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Ending("too long", "", seconds, 0)
    kind, _, rest = told.partition("\n")
    nbytes, _, message = rest.partition("\n")
    if not kind or status:
        return Ending(f"ended with status {status}", told, seconds, 0)
    if kind in ("answer", "error") and int(nbytes) > MOST_BYTES:
        kind = "too much memory"
    return Ending(kind, message, seconds, int(nbytes))


def _read(pipe: int, until: float) -> str | None:
    parts = []
    while True:
        left = until - time.perf_counter()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        part = os.read(pipe, 1 << 16)
        if not part:
            return b"".join(parts).decode("utf-8", "replace")
        parts.append(part)


def _child(attack: Callable[[], object], pipe: int) -> None:
    # A panic of a library written in Rust is told on standard error before it can be caught.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    before = process_memory().total
    limit = _ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    try:
        attack()
        kind, message = "answer", ""
    except MemoryError:
        kind, message = "too much memory", traceback.format_exc()
    except StrataError as error:
        kind, message = "error", f"{type(error).__name__}: {error}"
        if not str(error) or "\n" in str(error) or len(message) > _MOST_TOLD:
            kind = "an error that is no line"
    except BaseException as error:
        kind, message = f"raw {type(error).__name__}", traceback.format_exc()
    told = f"{kind}\n{max(0, peak_bytes() - before)}\n{message[-_MOST_TOLD:]}"
    os.write(pipe, told.encode("utf-8", "replace"))
    sys.stdout.flush()
    os._exit(0)
