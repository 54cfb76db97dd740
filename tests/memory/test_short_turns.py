"""Threads that read ask for short turns, and no others do."""

from __future__ import annotations

import ctypes
import platform
import time
from pathlib import Path

import pytest

from strata.formats import open_model
from support.streaming import forward, settings, units

TASKS = Path("/proc/self/task")
GET = {"x86_64": 315, "aarch64": 275}.get(platform.machine())
SHORT = 100_000


class Attributes(ctypes.Structure):
    """sched_attr of linux/sched/types.h."""

    _fields_ = (
        *(("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64)),
        *(("nice", ctypes.c_int32), ("priority", ctypes.c_uint32), ("runtime", ctypes.c_uint64)),
        *(("deadline", ctypes.c_uint64), ("period", ctypes.c_uint64)),
    )


def turn(thread: int) -> tuple[int, int]:
    """Nanoseconds of a thread's turns, and its niceness; of one that has ended zeros."""
    found = Attributes()
    call = ctypes.CDLL(None, use_errno=True).syscall
    call(GET, thread, ctypes.byref(found), ctypes.sizeof(found), 0)
    return found.runtime, found.nice


def threads() -> set[int]:
    return {int(task.name) for task in TASKS.iterdir()}


@pytest.mark.skipif(GET is None or not TASKS.exists(), reason="needs Linux")
def test_threads_that_read_take_short_turns(smollm2_path: Path) -> None:
    usual, nice = turn(0)
    if usual in (0, SHORT):
        pytest.skip("this system knows no length of turns")
    before = threads()
    with open_model(smollm2_path) as file:
        run = forward(file, settings(units(file), threads=3), threads=2)
        run.logits([5, 6, 7])
        # One for which there was nothing to read may not have begun yet.
        short: list[tuple[int, int]] = []
        end = time.monotonic() + 30
        while len(short) < 3 and time.monotonic() < end:
            short = [of for of in map(turn, threads() - before) if of[0] == SHORT]
        assert turn(0) == (usual, nice)
    assert short == [(SHORT, nice)] * 3
