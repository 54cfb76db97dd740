"""The probability that a model gave to each token of a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Span, StateCache, Step
from strata.decode import LogitsError, log_sum_exp
from strata.engine.runner import Runner
from strata.kv import KVCacheManager, PoolError


def _log_probabilities(logits: NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    """Of each token by its row of logits [tokens, vocabulary]."""
    return [float(row[token]) - log_sum_exp(row) for row, token in zip(logits, tokens, strict=True)]


def score(
    runner: Runner,
    state: StateCache,
    manager: KVCacheManager,
    tokens: Sequence[int],
    first: int,
    token_budget: int,
) -> NDArray[np.float64]:
    """Log-probabilities of ``tokens[first + 1:]``, computed beside what ``manager`` holds.

    The last token is predicted and not computed. Softmax is in float64. PoolError if too few blocks
    are free.
    """
    out: list[float] = []
    kv = manager.new()
    try:
        while kv.length < len(tokens) - 1:
            past = kv.length
            rows = min(token_budget, len(tokens) - 1 - past)
            if not manager.reserve(kv, rows):
                raise PoolError("the text does not fit the KV blocks that are free")
            tables = tuple(np.array(table, np.int32) for table in kv.tables)
            step = Step(
                np.array(tokens[past : past + rows], np.int32),
                np.arange(past, past + rows, dtype=np.int32),
                (Span(0, rows, past, tables),),
                np.arange(max(first - past, 0), rows, dtype=np.int32),
            )
            for logits in runner.run(step, state):
                at = first + 1 + len(out)
                out += _log_probabilities(logits, tokens[at : at + len(logits)])
                # Or it would be there beside the next rows, for which the Plan has no room.
                del logits
            manager.commit(kv, tokens, rows, known=False)
    finally:
        manager.release(kv)
    scored = np.array(out)
    if not np.isfinite(scored).all():
        raise LogitsError("the model gave logits that are not numbers; its weights are damaged")
    return scored
