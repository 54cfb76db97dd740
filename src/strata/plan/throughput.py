"""Tokens a second against how many requests run together: the largest batch is not always best.

FlexGen's search (arXiv 2303.06865) over this cost model: each number of requests has the Plan that
is best for it, of which weights stay, and what KV takes from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from strata.machine.machine import Machine
from strata.plan.outline import Outline
from strata.plan.plan import Limits, Plan, Workload
from strata.plan.planner import BudgetTooSmall, plan
from strata.records import dataclass

MOST_TOGETHER = 256


@dataclass(frozen=True)
class Throughput:
    """A Plan for so many requests together, and what it gives: tokens of answers a second over a
    long queue of requests, their prompts counted as time."""

    together: int
    plan: Plan
    tok_s: float

    @property
    def reading_decides(self) -> bool:
        """Whether a sweep takes as long as reading does, so that one more request costs little."""
        p = self.plan.predicted
        return p.sweep_read_s > p.sweep_compute_s


def throughput(
    model: Outline,
    machine: Machine,
    limits: Limits,
    workload: Workload,
    most: int = MOST_TOGETHER,
) -> tuple[Throughput, ...]:
    """For 1, 2, 4 and so on up to ``most`` requests together, as far as memory goes.
    BudgetTooSmall if not even one fits."""
    return tuple(_each(model, machine, limits, workload, most))


def _each(
    model: Outline, machine: Machine, limits: Limits, workload: Workload, most: int
) -> Iterator[Throughput]:
    together = 1
    while together <= most:
        try:
            made = plan(model, machine, limits, replace(workload, concurrency=together))
        except BudgetTooSmall:
            if together == 1:
                raise
            return
        p = made.predicted
        answers = together * max(1, workload.answer_tokens)
        yield Throughput(together, made, answers / (p.ttft_s + answers / p.decode_tok_s))
        together *= 2


def best(found: Sequence[Throughput]) -> Throughput:
    """The one with the most tokens a second; of those as good, the one with fewer requests."""
    most = max(t.tok_s for t in found)
    return next(t for t in found if t.tok_s >= 0.99 * most)
