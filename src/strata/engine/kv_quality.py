"""Which type of keys and values is used where answers may lose a little: the fastest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from strata.records import dataclass
from strata.sizes import format_speed

if TYPE_CHECKING:
    from strata.plan import Plan

CHOICE = "quality"
"""The name of the choice in a Plan that says which type it was, and why."""

_WORTH = 1.1
"""Times as fast as a more exact one a type must be expected to be."""


@dataclass(frozen=True)
class KVChoice:
    """A type that is good enough, by name, and what it is known to cost, in words."""

    kv_type: str
    cost: str


def quickest(make: Callable[[str], Plan], choices: Sequence[KVChoice], bound: str) -> Plan:
    """The Plan of the choice, from the most exact on, that is a tenth faster than what comes before
    it, or the first that has room; BudgetTooSmall, with the least budget, if none has."""
    from strata.plan import BudgetTooSmall

    best: Plan | None = None
    said: list[str] = []
    least: BudgetTooSmall | None = None
    cost = ""
    for choice in choices:
        try:
            plan = make(choice.kv_type)
        except BudgetTooSmall as error:
            said.append(f"{choice.kv_type} has no room")
            least = error if least is None or error.smallest < least.smallest else least
            continue
        speed = plan.predicted.decode_tok_s
        said.append(f"{choice.kv_type} {format_speed(speed)}")
        if best is None or speed > _WORTH * best.predicted.decode_tok_s:
            best, cost = plan, choice.cost
    if best is None:
        assert least is not None
        raise least
    from strata.plan import Choice

    reason = f"{cost}; expected: {', '.join(said)}"
    made = Choice(CHOICE, f"KV as {best.kv_type} for {bound}", reason)
    return replace(best, choices=(*best.choices, made))
