"""Runs that did not go as was predicted of them: after a few, the machine is measured again.

Kept beside what a probe measured, in the same file, are the last runs' speeds, each as a multiple
of the predicted one, as long as they are all too fast or all too slow. Measuring again forgets
them. If it finds what was known already, something else is wrong (the cost model, or a neighbour
that never rests), and runs count no more until somebody says ``strata probe --refresh``; nor do
they where measuring again has not helped a few times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from strata.machine.machine import Machine
from strata.records import dataclass

_OFF = 1.5
"""Times as fast as predicted, or as slow, from which on a run speaks against a probe."""

_RUNS = 3
"""In a row, and the same way, until the machine is measured again."""

_TIMES = 3
"""That it is measured again for such runs, at most."""

_ALIKE = 1.15
"""Two probes of a machine differ by less, when both times it is quiet."""


@dataclass(frozen=True)
class Doubts:
    """``runs`` in a row that were off; ``settled``: they say nothing about the probe, which was
    taken ``again`` so many times because of such."""

    runs: tuple[float, ...] = ()
    settled: bool = False
    again: int = 0

    @property
    def enough(self) -> bool:
        """Whether the machine is to be measured again."""
        return len(self.runs) >= _RUNS

    def after(self, ratio: float) -> Doubts:
        """After another run, ``ratio`` times as fast as predicted."""
        if self.settled:
            return self
        if 1 / _OFF < ratio < _OFF:
            return replace(self, runs=())
        same = all((before > 1) == (ratio > 1) for before in self.runs)
        return replace(self, runs=(*(self.runs if same else ()), ratio)[-_RUNS:])

    def measured(self, alike: bool) -> Doubts:
        """After measuring again, or trying to, which found what was known already or not."""
        return Doubts((), alike or self.again + 1 >= _TIMES, self.again + 1)

    @classmethod
    def read(cls, data: Any) -> Doubts:
        """Of a file's ``doubts``; none where that is damaged."""
        try:
            runs = tuple(float(run) for run in data["runs"])
            return cls(runs, data["settled"] is True, int(data["again"]))
        except (ValueError, TypeError, KeyError, OverflowError):
            return cls()

    def to_json(self) -> dict[str, Any]:
        """What ``read`` reads."""
        return {"runs": list(self.runs), "settled": self.settled, "again": self.again}


def alike(one: Machine, other: Machine) -> bool:
    """Whether two probes found the same speeds, but for what they differ by anyway."""
    return all(
        1 / _ALIKE < a / b < _ALIKE
        for a, b in zip(_speeds(one), _speeds(other), strict=True)
        if a and b
    )


def _speeds(machine: Machine) -> Sequence[float]:
    """What decides most predictions: memory, products, the disk; bytes a second."""
    kernels = [kernel.decode_bytes_s for kernel in machine.kernels]
    return (
        max((rate.bytes_s for rate in machine.memory_read), default=0.0),
        sum(kernels),
        max((rate.bytes_s for rate in machine.disk), default=0.0),
    )
