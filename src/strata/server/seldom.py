"""What clients can bring about as often as they like is logged once a second, each in its place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic

_PLACES = 64
"""Of which it is remembered when they were last told of."""


class Seldom:
    """Says a thing at most once a second, with how often it was left out since."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        # When each place was last told of, and how often it was not since.
        self._places: dict[str, tuple[float, int]] = {}

    def warning(self, message: str) -> None:
        """One line."""
        if (more := self._more("")) is not None:
            self._log.warning("%s%s", message, more)

    def failure(self, message: str, error: BaseException) -> None:
        """A line and the traceback of an error; others are others by where they were raised."""
        if (more := self._more(_place(error))) is not None:
            self._log.error("%s%s", message, more, exc_info=error)

    def _more(self, place: str) -> str | None:
        """What is added of those left out; None if this one is too."""
        with self._lock:
            now = self._clock()
            said, unsaid = self._places.pop(place, (now - 1, 0))
            if now < said + 1:
                self._places[place] = said, unsaid + 1
                return None
            self._places[place] = now, 0
            if len(self._places) > _PLACES:
                del self._places[next(iter(self._places))]
        return f" (and {unsaid} times since the last line)" if unsaid else ""


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__} {where}"
