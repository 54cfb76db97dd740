"""Which models have how much of a budget. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from strata.records import dataclass


@dataclass(frozen=True)
class Way:
    """A share of ``nbytes``, with which an ordinary answer takes so many ``seconds``."""

    nbytes: int
    seconds: float


@dataclass(frozen=True)
class Wish:
    """A model that may have one of ``ways``. ``weight`` is how often it is asked, in comparison.
    ``away_s`` is what not having it costs whoever asks; None: it must be there."""

    name: str
    ways: Sequence[Way]
    weight: float = 1.0
    away_s: float | None = None


@dataclass(frozen=True)
class _Choice:
    nbytes: int
    cost: float
    shares: tuple[int, ...]


def allot(wishes: Sequence[Wish], room: int) -> Mapping[str, int] | None:
    """Bytes for each by name, 0 for none, so that the expected seconds are the least of all ways
    within ``room`` bytes; None if there is none. What is left of it goes to those who are there,
    first to those who need not be, up to their largest way."""
    best = [_Choice(0, 0.0, ())]
    for wish in wishes:
        ways = list(wish.ways)
        if wish.away_s is not None:
            ways.append(Way(0, wish.away_s))
        found = [
            _Choice(
                c.nbytes + way.nbytes, c.cost + wish.weight * way.seconds, (*c.shares, way.nbytes)
            )
            for c in best
            for way in ways
            if c.nbytes + way.nbytes <= room
        ]
        best = _worth_more(found)
    if not best:
        return None
    chosen = min(best, key=lambda choice: choice.cost)
    shares = dict(zip((wish.name for wish in wishes), chosen.shares, strict=True))
    left = room - chosen.nbytes
    for wish in sorted(wishes, key=lambda wish: wish.away_s is None):
        if shares[wish.name]:
            more = min(left, max(way.nbytes for way in wish.ways) - shares[wish.name])
            shares[wish.name] += more
            left -= more
    return shares


def _worth_more(choices: list[_Choice]) -> list[_Choice]:
    """Those for which no other takes less and costs less."""
    kept: list[_Choice] = []
    for choice in sorted(choices, key=lambda c: (c.nbytes, c.cost)):
        if not kept or choice.cost < kept[-1].cost:
            kept.append(choice)
    return kept


def at(ways: Sequence[Way], nbytes: int) -> Way:
    """The way with a share that lies between those of a curve: seconds as of the largest below."""
    below = [way for way in ways if way.nbytes <= nbytes]
    return Way(nbytes, below[-1].seconds if below else ways[0].seconds)
