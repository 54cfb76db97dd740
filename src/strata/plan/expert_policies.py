"""Which experts stay in memory: what Plans know of the cache of ``csrc/runtime/expert_cache.cpp``.

Its policy and others are replayed on recorded visits by ``csrc/runtime/expert_replay.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from strata.backends.settings import EXPERT_DECAY


class Visit(NamedTuple):
    """A step of so many ``rows`` in a layer, which is its number among those that have experts: the
    experts that rows chose, in rising order, and by how many choices each."""

    layer: int
    rows: int
    experts: Sequence[int]
    uses: Sequence[int]


AHEAD = 8
"""Experts of a visit that may be on their way or in use before one gives way to the next."""

SURE = 0.9
SURE_OF = 4
"""Of its next layer's experts a step needs so many at least where they are read before their turn;
into one of so many slots at most."""

DECAYS = (0.9, 0.97, EXPERT_DECAY, 0.995, 0.999)
"""From nearly the least recently used to nearly the least frequently used: those among which a Plan
chooses where routes were recorded."""


def hit_rate(experts: int, layers: int, slots: int, needed: float, sure: int = 0) -> float:
    """Of ``experts`` in so many layers, all chosen alike, the share that is found in a slot by
    steps that need so many of each layer. Of the slots at most ``sure`` are for what the next layer
    is sure to need.

    What is in use or on its way is not found again: a few of a visit at a time, but never more than
    are missing in a layer, and where they are read before their turn those of the next one as well.
    """
    if not experts or slots >= experts:
        return float(experts > 0)
    if layers <= 2:
        sure = 0  # no others could give way to them
    passing = 2 if sure else 1
    few = slots - min(AHEAD, needed) - 1 - sure
    # Where fewer are missing in a layer: found = slots - passing * (experts - found) / layers.
    many = (layers * slots - passing * experts) / (layers - passing) if layers > passing else 0.0
    return max(0.0, few, many) / experts
