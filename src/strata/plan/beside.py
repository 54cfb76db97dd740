"""What is set aside for what may be asked beside tokens: large requests, templates, grammars.

Whether anybody asks for them is not known, and whoever has little memory has it for the model: the
smallest budget counts the least of each, and no grammars. Larger ones give more, in steps.
"""

from __future__ import annotations

from strata.guard import limits
from strata.machine import constants
from strata.plan.outline import Outline
from strata.plan.plan import Workload
from strata.records import dataclass


@dataclass(frozen=True)
class Beside:
    """The fields of a Plan that have these names."""

    grammars: int = 0
    template_bytes: int = 0
    admitted_bytes: int = 0


NOTHING = Beside()


def steps(model: Outline, workload: Workload) -> tuple[Beside, ...]:
    """From the least to the most; one alone where nothing can be asked for."""
    wards = min(limits.GRAMMARS, workload.concurrency)
    last = constants.BESIDE_STEPS
    found: dict[Beside, None] = {}
    for step in range(last + 1):

        def between(least: int, most: int, step: int = step) -> int:
            return least + (most - least) * step // last

        template = admitted = grammars = 0
        if model.foreign_template:
            template = between(limits.TEMPLATE_BYTES_LEAST, limits.TEMPLATE_BYTES)
        if workload.serving:
            admitted = between(constants.REQUESTS_LEAST, constants.REQUESTS)
            grammars = min(step, wards)
        found[Beside(grammars, template, admitted)] = None
    return tuple(found)


def guard_bytes(beside: Beside, vocabulary: int) -> int:
    """What guarded processes may take."""
    total = 0
    if beside.template_bytes or beside.grammars:
        total += limits.NURSERY
    if beside.template_bytes:
        total += limits.TEMPLATES + limits.TEMPLATE_WARD + beside.template_bytes
    if beside.grammars:
        total += limits.vocabulary_bytes(vocabulary)
        total += beside.grammars * (limits.GRAMMAR_WARD + limits.GRAMMAR_BYTES)
    return total


def admission_bytes(beside: Beside) -> int:
    """What requests may take, with a share for what allocators keep of it."""
    return beside.admitted_bytes + beside.admitted_bytes // 3


def added_beside(more: Beside, least: Beside, vocabulary: int) -> int:
    """By how much a budget has to be larger for ``more``, its margin included."""
    bytes_more, bytes_least = (
        guard_bytes(beside, vocabulary) + admission_bytes(beside) for beside in (more, least)
    )
    # One for each rounding.
    return int((bytes_more - bytes_least) * (1 + constants.MARGIN_SHARE)) + 2
