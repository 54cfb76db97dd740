"""Which experts the tokens of a text chose: how skewed, how sticky, and what a cache found."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from strata.backends.settings import EXPERT_DECAY
from strata.plan.expert_policies import Visit
from strata.records import dataclass

_CLOSE = 1.5


@dataclass(frozen=True)
class Routes:
    """``chosen`` [tokens, layers, top_k]: the experts of each token in each layer that has some, in
    rising order; ``experts`` of each layer."""

    experts: tuple[int, ...]
    chosen: NDArray[np.int32]

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return len(self.chosen)

    @cached_property
    def uses(self) -> list[int]:
        """How often each expert was chosen, by its number over all layers."""
        return self.uses_of(self.tokens)

    def uses_of(self, tokens: int) -> list[int]:
        """The same of the first so many tokens."""
        out: list[int] = []
        for layer, count in enumerate(self.experts):
            chosen = self.chosen[:tokens, layer].reshape(-1)
            out += np.bincount(chosen, minlength=count).tolist()
        return out

    def skew(self, share: float) -> float:
        """Of all uses, those of the most used ``share`` of a layer's experts; mean over layers."""
        found = []
        for layer, count in enumerate(self.experts):
            uses = np.bincount(self.chosen[:, layer].reshape(-1), minlength=count)
            most = max(1, round(share * count))
            found.append(np.sort(uses)[::-1][:most].sum() / max(1, uses.sum()))
        return float(np.mean(found))

    def stickiness(self, distance: int = 1) -> float:
        """Of a token's experts, the share that the token ``distance`` before it chose as well."""
        if self.tokens <= distance:
            return 0.0
        now, before = self.chosen[distance:], self.chosen[:-distance]
        same = (now[..., :, None] == before[..., None, :]).any(-1)
        return float(same.mean())

    @property
    def by_chance(self) -> float:
        """What ``stickiness`` would be if all experts were chosen alike."""
        return float(np.mean([self.chosen.shape[2] / count for count in self.experts]))

    def visits(self, rows: int = 1) -> list[Visit]:
        """What steps need that take one token of each of ``rows`` sequences: parts of the text."""
        steps = self.tokens // rows
        out: list[Visit] = []
        for step in range(steps):
            at = [part * steps + step for part in range(rows)]
            for layer in range(len(self.experts)):
                experts, uses = np.unique(self.chosen[at, layer], return_counts=True)
                out.append(Visit(layer, rows, experts.tolist(), uses.tolist()))
        return out


@dataclass(frozen=True)
class HitCurve:
    """Of the experts that steps of ``rows`` tokens needed, the share that so many slots held: pairs
    of slots, rising, and rates. ``tokens`` were recorded, and rows lost worth by ``decay``."""

    rows: int
    tokens: int
    points: tuple[tuple[int, float], ...]
    decay: float = EXPERT_DECAY

    def rate(self, slots: int) -> float:
        """Between two points as on a line."""
        counts = [0, *(count for count, _ in self.points)]
        rates = [0.0, *(rate for _, rate in self.points)]
        at = bisect_left(counts, slots)
        if at == len(counts):
            return rates[-1]
        if counts[at] == slots:
            return rates[at]
        part = (slots - counts[at - 1]) / (counts[at] - counts[at - 1])
        return rates[at - 1] + part * (rates[at] - rates[at - 1])


def curve_for(curves: Sequence[HitCurve], rows: int, slots: int) -> HitCurve | None:
    """The one of about as many rows that finds most in so many slots, of equals the first; None
    where there is none."""
    near = [c for c in curves if max(c.rows, rows) <= _CLOSE * min(c.rows, rows)]
    return min(near, key=lambda c: (abs(c.rows - rows), -c.rate(slots)), default=None)
