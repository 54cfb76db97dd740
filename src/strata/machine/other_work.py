"""How busy other processes keep the machine, as the system counts it."""

from __future__ import annotations

import os
import time
from pathlib import Path

BUSY = 0.15
"""Of the processors, what others may take where speeds are to say something."""

_BUSY = (0, 1, 2, 5, 6, 7)
"""Of the columns of /proc/stat (proc(5)): user, nice, system, irq, softirq, steal."""


class OtherWork:
    """Counts from when it is made."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = root / "proc" / "stat"
        self._began = self._counted()

    def share(self) -> float:
        """Of all processors' time since then, the part that others than this process and its
        children took; 0 where the system does not say."""
        if self._began is None or (now := self._counted()) is None:
            return 0.0
        every, busy, own = (b - a for a, b in zip(self._began, now, strict=True))
        return min(max((busy - own) / every, 0.0), 1.0) if every > 0 else 0.0

    def _counted(self) -> tuple[float, float, float] | None:
        """Seconds of all processors, those that were busy, and this process's own."""
        try:
            columns = [int(word) for word in self._stat.read_text().split("\n", 1)[0].split()[1:9]]
            ticks = os.sysconf("SC_CLK_TCK")
            busy = sum(columns[column] for column in _BUSY)
        except (OSError, ValueError, IndexError):
            return None
        return sum(columns) / ticks, busy / ticks, sum(os.times()[:4])


def at_rest() -> bool:
    """Whether others leave the machine alone just now. Looks for a fifth of a second."""
    others = OtherWork()
    time.sleep(0.2)
    return others.share() < BUSY
