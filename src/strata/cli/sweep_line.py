"""How far a long sweep is, at the cursor of a terminal."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from strata.engine.sweeps import SweepProgress

_LONG_S = 0.7
_EVERY_S = 0.25

# Written behind the cursor, which comes back to its place: an answer may stand on the same line.
# Without wrapping, so that a long line does not push that place up.
_BEFORE, _AFTER, _CLEAR = "\x1b7\x1b[?7l", "\x1b[K\x1b[?7h\x1b8", "\x1b[K"


class SweepLine:
    """Draws the progress of sweeps that take long; called with None when one has ended."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._drawn: float | None = None

    def __call__(self, progress: SweepProgress | None) -> None:
        """Draw, or wipe away."""
        if progress is None:
            if self._drawn is not None:
                self._write(_CLEAR)
            self._drawn = None
            return
        now = perf_counter()
        if progress.elapsed_s + progress.left_s < _LONG_S:
            return
        if self._drawn is None or now - self._drawn >= _EVERY_S:
            self._drawn = now
            self._write(_BEFORE + " " + line(progress) + _AFTER)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def line(progress: SweepProgress) -> str:
    """Such as ``[segment 12/34, 1.93 GB/s, next token in 3.2 s]``."""
    disk = f", {progress.bytes_s / 1e9:.2f} GB/s" if progress.bytes_s else ""
    left = f"next token in {progress.left_s:.1f} s"
    return f"[segment {progress.done}/{progress.segments}{disk}, {left}]"
