"""The probability that a model gave to each token of a text, and the logits it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Span, StateCache, Step
from strata.decode import LogitsError, log_sum_exp
from strata.engine.runner import Border, Runner
from strata.kv import KVCacheManager, PoolError

Rows = Callable[[NDArray[np.float32]], None]
"""Gets rows of logits [rows, vocabulary], which are valid until it returns."""


def visit(
    runner: Runner,
    state: StateCache,
    manager: KVCacheManager,
    tokens: Sequence[int],
    first: int,
    token_budget: int,
    rows: Rows,
    border: Border | None = None,
) -> None:
    """Give the logits that predict ``tokens[first + 1:]`` to ``rows``, a few rows at a time and in
    order, computed beside what ``manager`` holds; ``border`` as in ``Runner.run``.

    The last token is predicted and not computed. PoolError if too few blocks are free.
    """
    kv = manager.new()
    try:
        while kv.length < len(tokens) - 1:
            past = kv.length
            count = min(token_budget, len(tokens) - 1 - past)
            if not manager.reserve(kv, count):
                raise PoolError("the text does not fit the KV blocks that are free")
            tables = tuple(np.array(table, np.int32) for table in kv.tables)
            step = Step(
                np.array(tokens[past : past + count], np.int32),
                np.arange(past, past + count, dtype=np.int32),
                (Span(0, count, past, tables),),
                np.arange(max(first - past, 0), count, dtype=np.int32),
            )
            for logits in runner.run(step, state, border):
                rows(logits)
                # Or it would be there beside the next rows, for which the Plan has no room.
                del logits
            manager.commit(kv, tokens, count, known=False)
    finally:
        manager.release(kv)


def score(
    runner: Runner,
    state: StateCache,
    manager: KVCacheManager,
    tokens: Sequence[int],
    first: int,
    token_budget: int,
) -> NDArray[np.float64]:
    """Log-probabilities of ``tokens[first + 1:]``; see ``visit``. Softmax is in float64."""
    out: list[float] = []

    def take(logits: NDArray[np.float32]) -> None:
        at = first + 1 + len(out)
        pairs = zip(logits, tokens[at : at + len(logits)], strict=True)
        out.extend(float(row[token]) - log_sum_exp(row) for row, token in pairs)

    visit(runner, state, manager, tokens, first, token_budget, take)
    scored = np.array(out)
    if not np.isfinite(scored).all():
        raise LogitsError("the model gave logits that are not numbers; its weights are damaged")
    return scored
