"""Places the activations of a Segment in one arena: buffers live from first write to last read."""

from __future__ import annotations

from dataclasses import field

from strata.records import dataclass

_ALIGN = 64


@dataclass
class ArenaLayout:
    """First-fit allocation of byte ranges; ``size`` is the arena that all of them need."""

    size: int = 0
    _used: list[tuple[int, int]] = field(default_factory=list)

    def take(self, nbytes: int) -> int:
        """A free range, aligned to a cache line; returns its offset."""
        nbytes = -(-nbytes // _ALIGN) * _ALIGN
        offset = 0
        for start, end in sorted(self._used):
            if start - offset >= nbytes:
                break
            offset = max(offset, end)
        self._used.append((offset, offset + nbytes))
        self.size = max(self.size, offset + nbytes)
        return offset

    def give(self, offset: int) -> None:
        """Return the range at ``offset``."""
        self._used = [r for r in self._used if r[0] != offset]
