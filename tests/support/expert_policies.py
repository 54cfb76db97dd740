"""What a cache of experts comes to on recorded visits, plainly: the oracle of the native simulator.

``replay`` does what ``csrc/runtime/expert_cache.cpp`` does, without weights, and
``DecayingFrequency`` what ``csrc/runtime/expert_policy.cpp`` does: hits and misses are the same.
Experts have numbers over all layers, in the order of layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from strata.backends.settings import EXPERT_DECAY
from strata.plan.expert_policies import AHEAD, SURE, Visit
from strata.program.cost import distinct_experts

_WORTH = 0.8
"""So much of what was read because it is sure to be needed has to have been."""

FAST, RECENT = 0.7, 0.1
"""What a use is worth after the next row of what it was, where what is used now is to count, and
what that counts beside the slow decay. As much as costs nothing where choices do not stick."""

_REMEMBERED = 0.995
_TRIED_AGAIN = 17
"""What a visit told counts so much less after the next one; and where too little was needed of what
was sure, one visit in so many tries again."""

_NOTHING = 1e-100
"""What is worth less is worth nothing."""


class Policy(Protocol):
    """Which expert gives way to one that is needed."""

    def visit(self, layer: int, rows: int) -> None:
        """A step comes to a layer with so many rows."""

    def use(self, expert: int, choices: int) -> None:
        """The visit uses this one, by so many choices of its rows: told of all before anything is
        chosen."""

    def choose(self, experts: Sequence[int]) -> int:
        """Which of these, at least one, gives way."""


class LeastRecentlyUsed(Policy):
    """The field's usual one. Where every sweep uses more experts than there is room for, each goes
    just before it is needed again."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._now = 0

    def visit(self, layer: int, rows: int) -> None:
        """Layers are all the same."""

    def use(self, expert: int, choices: int) -> None:
        """It becomes the most recent one."""
        self._now += 1
        self._last[expert] = self._now

    def choose(self, experts: Sequence[int]) -> int:
        """The one whose use is the longest ago."""
        return min(experts, key=lambda e: self._last.get(e, 0))


class _DecayingShares:
    """Of each expert, the share of its layer's rows that chose it, where a row counts the less the
    longer it is ago: what it is worth after the next one is ``decay`` of what it was. Rows that
    come together count as they would one after the other."""

    def __init__(self, experts: Sequence[int], decay: float) -> None:
        self._decay = decay
        self._first = [0, *accumulate(experts)]
        self._layer_of = [layer for layer, count in enumerate(experts) for _ in range(count)]
        self._scores = [0.0] * len(self._layer_of)
        self._rows = [0.0] * len(experts)
        self._worth = 0.0

    def visit(self, layer: int, rows: int) -> None:
        if not rows:
            return
        fade, worth = 1.0, 0.0
        for _ in range(rows):
            worth += fade
            fade *= self._decay
        self._worth = worth / rows
        for expert in range(self._first[layer], self._first[layer + 1]):
            self._scores[expert] = _faded(self._scores[expert], fade)
        self._rows[layer] = _faded(self._rows[layer], fade) + self._worth * rows

    def use(self, expert: int, choices: int) -> None:
        self._scores[expert] += self._worth * choices

    def share(self, expert: int) -> float:
        rows = self._rows[self._layer_of[expert]]
        return self._scores[expert] / rows if rows > 0 else 0.0


class DecayingFrequency(Policy):
    """The least frequently used one: by its share of rows with a slow ``decay``, and some of that
    with a fast one, so that what is used now counts more where choices stick.

    Since shares are of a layer's own rows, no layer is ahead because its turn came before; of
    equals the one goes whose layer is the last to come again.
    """

    def __init__(self, experts: Sequence[int], decay: float = EXPERT_DECAY) -> None:
        self._layer_of = [layer for layer, count in enumerate(experts) for _ in range(count)]
        self._layers = len(experts)
        self._layer = -1
        self._slow = _DecayingShares(experts, decay)
        self._fast = _DecayingShares(experts, FAST)

    def visit(self, layer: int, rows: int) -> None:
        """See Policy."""
        self._layer = layer
        self._slow.visit(layer, rows)
        self._fast.visit(layer, rows)

    def use(self, expert: int, choices: int) -> None:
        """See Policy."""
        self._slow.use(expert, choices)
        self._fast.use(expert, choices)

    def choose(self, experts: Sequence[int]) -> int:
        """See Policy."""

        def key(expert: int) -> tuple[float, int, int]:
            ahead = self._layer_of[expert] - self._layer
            away = ahead if ahead > 0 else ahead + self._layers
            share = (1 - RECENT) * self._slow.share(expert) + RECENT * self._fast.share(expert)
            return share, -away, expert

        return min(experts, key=key)


def _faded(worth: float, by: float) -> float:
    worth *= by
    return 0.0 if worth < _NOTHING else worth


class StaticHot(Policy):
    """Those stay that were used most in other visits, whatever comes."""

    def __init__(self, uses: Mapping[int, int]) -> None:
        self._uses = uses

    @classmethod
    def of(cls, visits: Sequence[Visit], experts: Sequence[int]) -> StaticHot:
        """By the uses of these visits."""
        first = [0, *accumulate(experts)]
        uses: Counter[int] = Counter()
        for visit in visits:
            for e, choices in zip(visit.experts, visit.uses, strict=True):
                uses[first[visit.layer] + e] += choices
        return cls(uses)

    def visit(self, layer: int, rows: int) -> None:
        """Nothing changes."""

    def use(self, expert: int, choices: int) -> None:
        """Nothing changes."""

    def choose(self, experts: Sequence[int]) -> int:
        """The one with the fewest uses, of equals the first."""
        return min(experts, key=lambda e: (self._uses.get(e, 0), e))


class Belady(Policy):
    """The one whose next use is the farthest: no policy that does not know what comes is better."""

    def __init__(self, visits: Sequence[Visit], experts: Sequence[int]) -> None:
        first = [0, *accumulate(experts)]
        self._next: dict[int, list[int]] = {}
        for number in range(len(visits) - 1, -1, -1):
            visit = visits[number]
            for e in visit.experts:
                self._next.setdefault(first[visit.layer] + e, []).append(number)
        self._never = len(visits)
        self._now = -1

    def visit(self, layer: int, rows: int) -> None:
        """The next one of the visits that it knows."""
        self._now += 1

    def use(self, expert: int, choices: int) -> None:
        """It was known."""

    def choose(self, experts: Sequence[int]) -> int:
        """See Policy."""
        return max(experts, key=self._next_use)

    def _next_use(self, expert: int) -> int:
        uses = self._next.get(expert, [])
        while uses and uses[-1] <= self._now:
            uses.pop()
        return uses[-1] if uses else self._never


@dataclass(frozen=True)
class Replay:
    """Experts that were in memory when a visit needed them, and those that had to be read."""

    hits: int
    misses: int

    @property
    def hit_rate(self) -> float:
        """Of all that were needed; 0 where nothing was."""
        needed = self.hits + self.misses
        return self.hits / needed if needed else 0.0


class SureNext:
    """Whether a step is sure to need about all experts of its next layer, so that they can be read
    before its router has chosen: by how many rows choose, and by how often that was right."""

    def __init__(self) -> None:
        self._asked = self._right = 0.0
        self._passed = 0

    def came(self, asked: int, right: int) -> None:
        """A visit needed ``right`` of those that had been said to be sure."""
        self._asked = self._asked * _REMEMBERED + asked
        self._right = self._right * _REMEMBERED + right

    def ask(self, experts: int, top_k: int, rows: int) -> bool:
        """Asked once a visit: of layers with so many experts, of which each row chooses
        ``top_k``."""
        if distinct_experts(experts, top_k, rows) < SURE * experts:
            return False
        if self._right < _WORTH * self._asked:
            self._passed += 1
            if self._passed < _TRIED_AGAIN:
                return False
        self._passed = 0
        return True


def replay(
    visits: Sequence[Visit], experts: Sequence[int], slots: int, policy: Policy, sure: int = 0
) -> Replay:
    """What a cache of ``slots`` experts does on visits; ``experts`` are those of each layer, and at
    most ``sure`` slots are for what the next one is sure to need."""
    first = [0, *accumulate(experts)]
    held: dict[int, int] = {}
    holds: list[int | None] = [None] * slots
    hits = misses = 0
    next_sure, early, asked, sure_layer = SureNext(), set[int](), 0, -1

    def put(expert: int, slot: int) -> None:
        if (other := holds[slot]) is not None:
            del held[other]
        holds[slot] = expert
        held[expert] = slot

    for visit in visits:
        policy.visit(visit.layer, visit.rows)
        needed = [first[visit.layer] + e for e in visit.experts]
        for expert, choices in zip(needed, visit.uses, strict=True):
            policy.use(expert, choices)
        places = {expert: place for place, expert in enumerate(needed)}
        early &= places.keys()
        if sure_layer == visit.layer:
            next_sure.came(asked, len(early))
        asked, sure_layer, after = 0, -1, visit.layer + 1
        about_all = (
            sure > 0
            and after < len(experts)
            and visit.rows > 0
            and next_sure.ask(experts[after], sum(visit.uses) // visit.rows, visit.rows)
        )
        for place, expert in enumerate(needed):
            if expert in held and expert not in early:
                hits += 1
                continue
            misses += 1
            if expert not in held:
                put(expert, _find_slot(holds, places, place, policy, held))
        early.clear()
        if not about_all:
            continue
        # Into slots of others than this layer's at first, and of these once it is over.
        own, coming = (range(first[n], first[n + 1]) for n in (visit.layer, after))
        missing = [e for e in coming if e not in held]
        for over in (False, True):
            while missing and len(early) < sure:
                others = (e for e in holds if e is not None and e not in coming)
                may_go = [e for e in others if over or e not in own]
                if len(held) < slots:
                    slot = holds.index(None)
                elif may_go:
                    slot = held[policy.choose(may_go)]
                else:
                    break
                early.add(missing[0])
                put(missing.pop(0), slot)
        if early:
            asked, sure_layer = len(early), after
    return Replay(hits, misses)


def _find_slot(
    holds: Sequence[int | None],
    places: Mapping[int, int],
    place: int,
    policy: Policy,
    held: Mapping[int, int],
) -> int:
    """An empty slot, or that of one that gives way: neither one that is needed later nor one of
    those last admitted, while there is any other."""
    if len(held) < len(holds):
        return next(slot for slot, expert in enumerate(holds) if expert is None)
    ahead = min(AHEAD, len(holds) - 1)
    # In the order of slots, so that of equals the same one goes everywhere.
    all_held = [e for e in holds if e is not None]
    may_go = [e for e in all_held if not places.get(e, place - ahead - 1) >= place - ahead]
    if may_go:
        return held[policy.choose(may_go)]
    return held[max((e for e in held if e in places), key=lambda e: places[e])]
