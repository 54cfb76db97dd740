"""The probability that a model gave to each token of a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KVCache, Span, Step
from strata.decode import LogitsError, log_sum_exp
from strata.engine.runner import Runner


def score(
    runner: Runner,
    kv: KVCache,
    table: Sequence[int],
    tokens: Sequence[int],
    first: int,
    token_budget: int,
) -> NDArray[np.float64]:
    """Log-probabilities of ``tokens[first + 1:]``, computed in KV blocks ``table``.

    The last token is predicted and not computed. Softmax is in float64.
    """
    blocks = np.array(table, np.int32)
    out: list[float] = []
    for past in range(0, len(tokens) - 1, token_budget):
        rows = min(token_budget, len(tokens) - 1 - past)
        out_rows = np.arange(max(first - past, 0), rows, dtype=np.int32)
        step = Step(
            np.array(tokens[past : past + rows], np.int32),
            np.arange(past, past + rows, dtype=np.int32),
            (Span(0, rows, past, blocks),),
            out_rows,
        )
        for logits in runner.run(step, kv):
            for row in logits:
                logit = float(row[tokens[first + 1 + len(out)]])
                out.append(logit - log_sum_exp(row))
    scored = np.array(out)
    if not np.isfinite(scored).all():
        raise LogitsError("the model gave logits that are not numbers; its weights are damaged")
    return scored
