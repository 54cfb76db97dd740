"""How long a step takes by its number of rows: as predicted, and corrected by what steps took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

_KNOTS: tuple[int, ...] = (
    *range(1, 9),
    10,
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    56,
    64,
    96,
    128,
    256,
    512,
    1024,
)
"""Numbers of rows for which a time is kept; between them it is a line."""

_STEP = 0.2
"""By how much of its surprise a measured time moves what is known; the first ones move it more."""

_SURPRISES = (4.0, 2.0, 1.5, 1.25)
"""A step that takes so many times as long as known, or as short, counts as this many: the first of
its size, the second, and so on."""

_SETTLED = 8
"""Steps of a size after which a surprise is one of the time and not of the size."""

_SHARED = 0.05
"""By how much of it all other sizes move then."""

_ROW = 0.1
"""Of a step, what a row more is thought to cost while no larger step was ever measured."""


class StepCosts:
    """Seconds of a step of so many rows.

    ``predicted`` gives some of them, from a cost model. The first step gives them their scale, and
    each later one that of more rows than its own, as far as those were not measured. A time that
    is not known at all is a line between those that are, and from the last two of them on.
    """

    def __init__(self, predicted: Mapping[int, float] | None = None) -> None:
        self._known: dict[int, float] = dict(sorted((predicted or {}).items()))
        self._measured: Counter[int] = Counter()
        self._rows = list(self._known)
        self._least = list(self._known.values())

    @property
    def known(self) -> bool:
        """Whether there is any time to go by."""
        return bool(self._known)

    def knows(self, rows: int) -> bool:
        """Whether a step of so many rows or fewer was measured: before that little is known."""
        return any(knot <= rows for knot in self._measured)

    def seconds(self, rows: int) -> float:
        """What a step of so many rows takes; something has to be known. More rows never take less:
        what was measured of them bounds it."""
        at = bisect_left(self._rows, rows)
        if at == len(self._rows):
            return self._beyond(rows)
        if at == 0 or self._rows[at] == rows:
            return self._least[at]
        low, high = self._rows[at - 1], self._rows[at]
        share = (rows - low) / (high - low)
        return self._least[at - 1] + share * (self._least[at] - self._least[at - 1])

    def _beyond(self, rows: int) -> float:
        """Of more rows than were ever measured."""
        last = self._least[-1]
        if len(self._rows) == 1:
            # Nothing says what a row costs: little enough that it is tried.
            return last * max(1.0, 1 + _ROW * (rows / self._rows[0] - 1))
        slope = (last - self._least[-2]) / (self._rows[-1] - self._rows[-2])
        return last + slope * (rows - self._rows[-1])

    def measured(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        knot = _nearest(rows)
        if not self._known:
            self._known[knot] = seconds * max(1.0, knot / rows)
        elif not self._measured:
            self._scale(seconds / self.seconds(rows), list(self._known))
        else:
            times = self._measured[knot]
            most = _SURPRISES[min(times, len(_SURPRISES) - 1)]
            surprise = min(most, max(1 / most, seconds / self.seconds(rows)))
            factor = surprise ** max(_STEP, 1 / (times + 1))
            self._scale(factor, self._only_predicted_above(knot))
            self._known[knot] = self.seconds(knot) * factor
            if times >= _SETTLED:
                # What makes it slower (others on the machine, a longer text) makes all slower.
                self._scale(surprise**_SHARED, [k for k in self._known if k != knot])
        self._measured[knot] += 1
        if len(self._rows) < len(self._known):
            self._rows = sorted(self._known)
        self._least = [self._known[k] for k in self._rows]
        for at in range(len(self._rows) - 2, -1, -1):
            self._least[at] = min(self._least[at], self._least[at + 1])

    def _only_predicted_above(self, knot: int) -> list[int]:
        """Knots above one, up to the next one that was measured: their prediction errs alike."""
        border = min((k for k in self._measured if k > knot), default=_KNOTS[-1] + 1)
        return [k for k in self._known if knot < k < border]

    def _scale(self, factor: float, knots: Iterable[int]) -> None:
        for knot in knots:
            self._known[knot] *= factor


def _nearest(rows: int) -> int:
    """The knot that is nearest to so many rows, of two the smaller one."""
    at = bisect_left(_KNOTS, rows)
    if at == 0 or at == len(_KNOTS):
        return _KNOTS[max(0, at - 1)]
    low, high = _KNOTS[at - 1], _KNOTS[at]
    return low if rows - low <= high - rows else high
