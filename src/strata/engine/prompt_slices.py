"""How many tokens of prompts a step may have beside answers: as planned, and no more than steps
were measured to bear."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from strata.engine.step_costs import StepCosts

_DEPTH = 64
"""Positions of a prompt up to which depths are one; each further range is twice as long."""

_FIRST = 1.25
"""By how much a slice may cost more than its first row, which reads all that the prompt keeps:
where that alone is beyond the bound, fewer rows would only be more steps as slow."""

_LEAST = 0.01
"""Of an answer's step, what a prompt's row is taken to cost at least: where somebody else made
answers slow, it may seem to cost nothing."""

_TRIED_EVERY = 100
"""Slices after which one is twice as large: a size that once seemed too dear, as a first step with
page faults does, would never be measured again. Seldom enough for the 99th percentile."""

_EACH_ALIKE = {1: 1.0, 1024: 1024.0}
"""What slices are thought to take by their rows, to any scale, before there are measurements."""


class PromptSlices:
    """Tokens of prompts beside answers.

    ``planned`` are those of one prompt beside 1 sequence that decodes, beside 2, 4, 8 and so on;
    what lies between goes by its place there, and further prompts add as many each. Empty: as many
    as there is room for. A Plan knows one depth of a prompt; rows that attend to more positions
    take longer. So with a ``slowdown`` a step takes at most so many times as long as without the
    prompt, by what steps took: those of answers alone by their number, and what slices of so many
    rows added to them, by their depth. One token is always taken.
    """

    def __init__(self, planned: Sequence[int] = (), slowdown: float | None = None) -> None:
        self.planned = tuple(planned)
        self._slowdown = slowdown
        self._answers = StepCosts()
        self._slices: dict[int, StepCosts] = {}
        self._taken = 0

    def tokens(self, answers: int, prompts: int, depth: int) -> int | None:
        """Of so many prompts beside so many answers, where the deepest prompt has ``depth``
        positions; None where that is not bounded."""
        if not self.planned or not answers:
            return None
        # Prompts will be answers soon, so what one may cost is counted by the step of them all:
        # where many wait, few are being answered, and hurrying serves everybody.
        count = answers + prompts - 1
        most = self._planned(count) * prompts
        if self._slowdown is None or not (self._slices and self._answers.known):
            return most
        at = _range(depth)
        costs = self._slices[min(self._slices, key=lambda known: (abs(known - at), known))]
        allowed = (self._slowdown - 1) * self._answers.seconds(count) * prompts
        bound = max(allowed, _FIRST * costs.seconds(1))
        borne = max(1, bisect_right(range(1, most + 1), bound, key=costs.seconds))
        return min(most, 2 * borne) if self._taken % _TRIED_EVERY == _TRIED_EVERY - 1 else borne

    def _planned(self, count: int) -> int:
        place = count.bit_length() - 1
        if place + 1 >= len(self.planned):
            return self.planned[-1]
        low, high = self.planned[place : place + 2]
        return low + ((high - low) * (count - (1 << place)) >> place)

    def measured(self, answers: int, rows: int, depth: int, seconds: float) -> None:
        """A step with so many rows of answers, and ``rows`` of prompts at ``depth``, took so
        long."""
        if self._slowdown is None or not self.planned or not answers:
            return
        if not rows:
            self._answers.measured(answers, seconds)
        elif self._answers.known:
            self._taken += 1
            alone = self._answers.seconds(answers)
            costs = self._slices.setdefault(_range(depth), StepCosts(_EACH_ALIKE))
            costs.measured(rows, max(seconds - alone, rows * _LEAST * alone))


def _range(depth: int) -> int:
    return (depth // _DEPTH).bit_length()
