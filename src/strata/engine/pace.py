"""How long prompts come in beside answers without anybody noticing."""

from __future__ import annotations

_SMOOTHING = 0.2
"""Weight of the latest measurement."""

FIRST_SHARE = 32
"""Tokens, before anything is measured."""

LEAST_SHARE = 8
"""Tokens that a step takes at least: beside its weights they cost next to nothing."""


class Pace:
    """Bounds the tokens that go to prompts so that a step takes ``slowdown`` times what it would
    take without them.

    Told how long steps took, it knows the time of quiet ones by the number of answers in them, and
    what a token of a prompt adds. Where a sweep over the weights takes long, as when they are
    streamed, many tokens fit beside it.
    """

    def __init__(self, slowdown: float) -> None:
        self._extra = slowdown - 1.0
        self._quiet: dict[int, float] = {}
        self._token_s: float | None = None

    def share(self, single: int) -> int:
        """Tokens for prompts beside ``single`` answers."""
        quiet = self._quiet_s(single)
        if quiet is None or self._token_s is None:
            return FIRST_SHARE
        return max(LEAST_SHARE, int(self._extra * quiet / self._token_s))

    def observe(self, single: int, several: int, seconds: float) -> None:
        """A step took ``seconds`` with ``single`` answers and ``several`` tokens of prompts."""
        if not several:
            self._quiet[single] = _smooth(self._quiet.get(single), seconds)
            return
        quiet = self._quiet_s(single) if single else None
        if quiet is not None:
            # However noisy the clock: a token takes some time, and no more than its step.
            added = max(seconds - quiet, 0.02 * seconds) / several
            self._token_s = _smooth(self._token_s, added)

    def _quiet_s(self, single: int) -> float | None:
        """Of the number of answers nearest to ``single`` that was measured."""
        if not self._quiet:
            return None
        return self._quiet[min(self._quiet, key=lambda n: abs(n - single))]


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
