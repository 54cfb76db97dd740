"""How long prompts come in beside answers without anybody noticing."""

from __future__ import annotations

from collections import deque
from statistics import median

_SMOOTHING = 0.1
"""Weight of the latest step with prompts."""

_QUIET_STEPS = 5
"""Quiet steps whose median counts."""

_OUTLIER = 2.0
"""Times of a quiet step that a measurement may differ by: what is more says nothing of tokens, but
that the system did something else meanwhile."""

_GROWTH = 4.0
"""Times as many tokens as in the step before, at most."""

_LEAST = 1e-4
"""Of a quiet step, which a token takes at least, however noisy the clock."""

_QUIET_EVERY = 16
"""Steps after which one without prompts is measured: answers grow longer, and slower, meanwhile."""

FIRST_SHARE = 16
"""Tokens for each prompt, before anything is measured."""


class Pace:
    """Bounds the tokens that go to prompts so that a step beside one of them takes ``slowdown``
    times what it would take without. Each further prompt may cost as much again: where many wait,
    those that are being answered share the machine with few, and hurrying serves everybody.

    Told how long steps took, it knows the time of quiet ones by the number of answers in them, and
    what tokens of a prompt add: by what all of them added, because one alone adds less than steps
    differ. Where a sweep over the weights takes long, as when they are streamed, many tokens fit
    beside it.
    """

    def __init__(self, slowdown: float) -> None:
        self._extra = slowdown - 1.0
        self._quiet: dict[int, deque[float]] = {}
        self._added_s: float | None = None
        self._tokens: float | None = None
        self._last = 0
        self._rest = 0.0
        self._mixed = 0

    def share(self, answers: int, prompts: int) -> int:
        """Tokens for so many prompts beside so many answers; now and then none."""
        quiet = self._quiet_s(answers)
        if quiet is None or self._mixed >= _QUIET_EVERY:
            return 0
        if self._added_s is None or self._tokens is None:
            return FIRST_SHARE * prompts
        token_s = max(self._added_s / self._tokens, _LEAST * quiet)
        # A guess that is far too high is noticed before it has done much.
        most = _GROWTH * prompts * max(self._last, self._tokens)
        wanted = min(self._extra * prompts * quiet / token_s, most) + self._rest
        share = max(1, int(wanted))
        self._rest = min(max(wanted - share, 0.0), 1.0)
        return share

    def observe(self, answers: int, tokens: int, seconds: float) -> None:
        """A step took ``seconds`` with so many answers and ``tokens`` of prompts."""
        if not tokens:
            self._mixed = 0
            self._quiet.setdefault(answers, deque(maxlen=_QUIET_STEPS)).append(max(seconds, 1e-6))
            return
        self._mixed += 1
        quiet = self._quiet_s(answers) if answers else None
        if quiet is not None:
            bound = _OUTLIER * quiet
            self._added_s = _smooth(self._added_s, min(max(seconds - quiet, -bound), bound))
            self._tokens = _smooth(self._tokens, tokens)
            self._last = tokens

    def _quiet_s(self, answers: int) -> float | None:
        """Of the number of answers nearest to ``answers`` that was measured."""
        if not self._quiet:
            return None
        return median(self._quiet[min(self._quiet, key=lambda n: abs(n - answers))])


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
