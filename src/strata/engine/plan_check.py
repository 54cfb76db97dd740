"""Whether what ran was as fast as its Plan said, for the sake of later Plans."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from strata.machine.other_work import BUSY, OtherWork

if TYPE_CHECKING:
    from pathlib import Path

    from strata.engine.sweeps import Sweeps
    from strata.plan import Plan

_SWEEPS = 32
_SECONDS = 3.0
"""Of decoding one sequence: less says little."""

_GUESSED = 1.1
"""Tokens a sweep: where more were guessed, sweeps are not those that were predicted."""


class PlanCheck:
    """Begins with a run of ``plan``, whose model is at ``path``, on this machine as it was
    measured."""

    def __init__(self, path: Path, plan: Plan, sweeps: Sweeps) -> None:
        self._path, self._plan, self._sweeps = path, plan, sweeps
        self._others = OtherWork()

    def end(self) -> None:
        """Keep what the run says of the machine, if it says anything."""
        ratio = self.ratio()
        if ratio is not None and (ratio > 1 or self._others.share() < BUSY):
            from strata.machine.probe import note_run

            # The model, or Strata, may be deleted by now.
            with suppress(OSError):
                note_run(self._path, ratio)

    def ratio(self) -> float | None:
        """How many times as fast as predicted the answers came; None where there is nothing to
        compare."""
        total, said = self._sweeps.decode, self._plan.predicted
        if said.concurrency != 1 or total.sweeps < _SWEEPS or total.seconds < _SECONDS:
            return None
        if not total.sweeps <= total.tokens <= _GUESSED * total.sweeps:
            return None
        return total.tokens / total.seconds / said.decode_tok_s
