"""How much of a prompt fits into a sweep beside answers that somebody reads."""

from __future__ import annotations

from strata.backends.profile import SweepSize
from strata.machine import constants
from strata.plan.cost_model import CostModel, Streaming

SLOWDOWN = 1.4
"""What a prompt may cost those being answered, where it is bounded. Under the promised 1.5, because
sweeps vary."""


def prefill_budget(
    costs: CostModel,
    streaming: Streaming,
    *,
    slowdown: float,
    parallel: int,
    answer_past: int,
    prompt_past: int,
    most: int,
) -> tuple[int, ...]:
    """Tokens of a prompt beside 1 sequence that decodes, beside 2, 4, 8 and so on up to
    ``parallel``, with which a sweep takes at most ``slowdown`` times as long as without them.

    Each answer is ``answer_past`` positions deep, and the prompt ``prompt_past``. At least one
    token, and no more than ``most``.
    """

    def seconds(decodes: int, tokens: int) -> float:
        # Products go by rows, whoever's they are; attention goes by sequences and their depths.
        rows = costs.sweep_s(SweepSize(decodes + tokens, 1, 0, decodes), streaming)
        answers = _attention(costs, streaming, SweepSize(decodes, 1, answer_past, decodes))
        told = decodes * constants.SERVED_TOKEN
        if not tokens:
            return rows + answers + told
        prompt = _attention(costs, streaming, SweepSize(1, tokens, prompt_past, 0))
        return rows + answers + prompt + told

    budgets = []
    decodes = 1
    while True:
        bound = slowdown * seconds(decodes, 0)
        low, high = 1, most
        while low < high:
            middle = (low + high + 1) // 2
            if seconds(decodes, middle) <= bound:
                low = middle
            else:
                high = middle - 1
        budgets.append(low)
        if decodes * 2 > parallel:
            return tuple(budgets)
        decodes *= 2


def _attention(costs: CostModel, streaming: Streaming, size: SweepSize) -> float:
    """What the depth of its sequences adds to a sweep."""
    shallow = SweepSize(size.sequences, size.rows, 0, size.logit_rows)
    return costs.sweep_s(size, streaming) - costs.sweep_s(shallow, streaming)
