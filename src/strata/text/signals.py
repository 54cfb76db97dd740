"""Signals that wait until code which cannot pass an exception on has come to its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[None]:
    """What handles SIGINT and SIGTERM runs after the block instead of within it.

    A library that calls Python back may drop what a handler raises there, or make a TypeError of
    it: then Ctrl-C is lost. For blocks of a second, not for long ones. Handlers only ever run in
    the main thread, so elsewhere nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # A handler that is not Python's (None) could not be put back, and raises nothing.
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))
    }
    for number in before:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for arrived in came:
            signal.raise_signal(arrived)
