"""How long prompts come in beside answers without anybody noticing."""

from __future__ import annotations

_SMOOTHING = 0.2
"""Weight of the latest measurement."""

_QUIET_EVERY = 16
"""Steps after which one without prompts is measured: answers grow longer, and slower, meanwhile."""

FIRST_SHARE = 16
"""Tokens for each prompt, before anything is measured."""


class Pace:
    """Bounds the tokens that go to prompts so that a step beside one of them takes ``slowdown``
    times what it would take without. Each further prompt may cost as much again: where many wait,
    those that are being answered share the machine with few, and hurrying serves everybody.

    Told how long steps took, it knows the time of quiet ones by the number of answers in them, and
    what a token of a prompt adds. Where a sweep over the weights takes long, as when they are
    streamed, many tokens fit beside it.
    """

    def __init__(self, slowdown: float) -> None:
        self._extra = slowdown - 1.0
        self._quiet: dict[int, float] = {}
        self._token_s: float | None = None
        self._mixed = 0

    def share(self, answers: int, prompts: int) -> int:
        """Tokens for so many prompts beside so many answers; now and then none."""
        quiet = self._quiet_s(answers)
        if quiet is None or self._mixed >= _QUIET_EVERY:
            return 0
        if self._token_s is None:
            return FIRST_SHARE * prompts
        return max(1, int(self._extra * prompts * quiet / self._token_s))

    def observe(self, answers: int, tokens: int, seconds: float) -> None:
        """A step took ``seconds`` with so many answers and ``tokens`` of prompts."""
        if not tokens:
            self._mixed = 0
            self._quiet[answers] = _smooth(self._quiet.get(answers), max(seconds, 1e-6))
            return
        self._mixed += 1
        quiet = self._quiet_s(answers) if answers else None
        if quiet is not None:
            # However noisy the clock: a token takes some time, and no more than its step.
            added = max(seconds - quiet, 0.02 * seconds, 1e-7) / tokens
            self._token_s = _smooth(self._token_s, added)

    def _quiet_s(self, answers: int) -> float | None:
        """Of the number of answers nearest to ``answers`` that was measured."""
        if not self._quiet:
            return None
        return self._quiet[min(self._quiet, key=lambda n: abs(n - answers))]


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
