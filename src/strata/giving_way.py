"""Work on large texts that lets those go first who wait for tokens.

A thread whose work may be put off has a ``Pace``; what goes through a text calls ``give_way`` at
every step, in whatever thread it runs. A lower priority is not enough: the interpreter is had by
one thread at a time, and a processor is only given back when a slice of time has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter, sleep

PIECE_S = 5e-4
"""For which a thread works before it rests."""

REST = 2.0
"""For how long it rests then, by how long it has worked."""

MOST_S = 5e-3
"""For how long at most: work may have lasted because others had the processor."""


class Pace:
    """Of one thread: it rests between pieces of work while ``busy`` says that somebody waits."""

    def __init__(
        self,
        busy: Callable[[], bool],
        clock: Callable[[], float] = perf_counter,
        rest: Callable[[float], None] = sleep,
    ) -> None:
        self._busy, self._clock, self._rest = busy, clock, rest
        self.begin()

    def begin(self) -> None:
        """Work begins now."""
        self._since = self._clock()

    def step(self) -> None:
        """A part of the work is done."""
        worked = self._clock() - self._since
        if worked >= PIECE_S:
            if rest := self.rest_after(worked):
                self._rest(rest)
            self.begin()

    def rest_after(self, worked: float) -> float:
        """For how long to rest after so many seconds of work; 0 to go on with it."""
        return min(REST * worked, MOST_S) if worked >= PIECE_S and self._busy() else 0.0


class _Threads(threading.local):
    pace: Pace | None = None


_threads = _Threads()


def set_pace(pace: Pace | None) -> None:
    """Of the thread that calls."""
    _threads.pace = pace


def begin_work() -> None:
    """A job begins, in a thread that may have a pace."""
    if _threads.pace is not None:
        _threads.pace.begin()


def rest_after(worked: float) -> float:
    """For how long another process is to rest which has worked for so many seconds, and for which
    this thread waits; 0 to let it go on, as in a thread without a pace."""
    return 0.0 if _threads.pace is None else _threads.pace.rest_after(worked)


def give_way() -> None:
    """Let others go first, in a thread that has a pace."""
    if _threads.pace is not None:
        _threads.pace.step()
