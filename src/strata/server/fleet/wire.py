"""What goes between the front and its processes: lines of JSON through pipes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from strata.errors import StrataError, UsageError

LONGEST_LINE = 4 << 20
"""Bytes: of what a header says, which the front keeps, no more than a template is long."""
HELPER_BYTES = 160 << 20
"""Of a process that reads headers, or downloads."""

_TOLD_S = 0.1
"""Between two reports of progress."""


class Pipe:
    """The inner end: what was asked on standard input, told of on standard output."""

    def __init__(self) -> None:
        self._out = sys.stdout
        # What libraries print is none of the conversation.
        sys.stdout = sys.stderr
        self._lock = threading.Lock()
        self._told = 0.0

    def asked(self) -> dict[str, Any]:
        """The one thing that is asked."""
        return dict(json.loads(sys.stdin.readline()))

    def tell(self, **what: Any) -> None:
        """One line. Who has nobody left to tell ends soon by itself."""
        try:
            with self._lock:
                self._out.write(json.dumps(what) + "\n")
                self._out.flush()
        except OSError:
            pass

    def progress(self, label: str, done: int, total: int | None) -> None:
        """How far it is; see ``LoadProgress``."""
        now = monotonic()
        if now - self._told >= _TOLD_S or done == total:
            self._told = now
            self.tell(progress=[label, done, total])

    def failed(self, error: BaseException) -> None:
        """It cannot be done, and why."""
        known = isinstance(error, StrataError | OSError)
        self.tell(
            failed={
                "message": str(error) if known else f"unexpected {type(error).__name__}: {error}",
                "usage": isinstance(error, UsageError),
                "smallest": getattr(error, "smallest", None),
            }
        )

    def when_left(self, end: Callable[[], None]) -> None:
        """Call ``end`` once the front has closed its end, or is gone."""

        def wait() -> None:
            while sys.stdin.readline():
                pass
            end()

        threading.Thread(target=wait, name="strata-front", daemon=True).start()


class ProcessFailed(StrataError):
    """What a process was for cannot be done. ``usage``: whoever asked has to ask otherwise;
    ``smallest`` is a budget in which it can be done."""

    def __init__(self, failed: Mapping[str, Any]) -> None:
        super().__init__(str(failed["message"]))
        self.usage = bool(failed.get("usage"))
        self.smallest: int | None = failed.get("smallest")
