"""Embeddings of texts: rows of several texts run together, those of each made one vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Span, StateCache, Step
from strata.decode import LogitsError
from strata.engine.runner import Runner
from strata.kv import KVCacheManager, PoolError, SequenceState
from strata.models.embedding import Pooling
from strata.records import dataclass


@dataclass
class _Text:
    """A text of which some rows have run."""

    index: int
    tokens: Sequence[int]
    kv: SequenceState
    total: NDArray[np.float64]
    rows: int = 0


def embed(
    runner: Runner,
    state: StateCache,
    manager: KVCacheManager,
    texts: Sequence[Sequence[int]],
    pooling: Pooling,
    *,
    token_budget: int,
    parallel: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """[texts, width]: of each text the mean of its tokens' rows, or its first or last row.

    Up to ``parallel`` texts share a step of at most ``token_budget`` rows; a Model that is not
    causal has every text whole in one. Sums are float64, row by row, so that no company and no
    cutting of a text changes a bit. PoolError if too few blocks are free, LogitsError for rows that
    are not numbers. ``progress`` is told of texts that are done, and all.
    """
    out = np.empty((len(texts), runner.model.row_width), np.float32)
    waiting = list(reversed(range(len(texts))))
    running: list[_Text] = []
    whole = not runner.model.causal
    try:
        while waiting or running:
            room = token_budget - sum(len(t.tokens) - t.rows for t in running)
            while waiting and len(running) < parallel and room > 0:
                tokens = texts[waiting[-1]]
                if running and whole and len(tokens) > room:
                    break
                kv = manager.new()
                total = np.zeros(out.shape[1])
                running.append(_Text(waiting.pop(), tokens, kv, total))
                room -= len(tokens)
            _step(runner, state, manager, running, pooling, token_budget)
            for done in [t for t in running if t.rows == len(t.tokens)]:
                count = len(done.tokens) if pooling == "mean" else 1
                out[done.index] = done.total / count
                manager.release(done.kv)
                running.remove(done)
            if progress is not None:
                progress(len(texts) - len(waiting) - len(running), len(texts))
    finally:
        for text in running:
            manager.release(text.kv)
    if not np.isfinite(out).all():
        raise LogitsError("the model gave embeddings that are not numbers; its weights are damaged")
    return out


def _step(
    runner: Runner,
    state: StateCache,
    manager: KVCacheManager,
    running: Sequence[_Text],
    pooling: Pooling,
    budget: int,
) -> None:
    """Run the next rows of the texts, the first ones first, and add what counts of them."""
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    wanted: list[int] = []
    owners: list[_Text] = []
    taken: list[tuple[_Text, int]] = []
    for text in running:
        rows = min(budget - len(tokens), len(text.tokens) - text.rows)
        if not rows:
            break
        if not manager.reserve(text.kv, rows):
            raise PoolError("the texts do not fit the KV blocks that are free")
        past, at = text.rows, len(tokens)
        tables = tuple(np.array(table, np.int32) for table in text.kv.tables)
        spans.append(Span(at, rows, past, tables))
        tokens += text.tokens[past : past + rows]
        positions += range(past, past + rows)
        counted = [
            i
            for i in range(rows)
            if pooling == "mean" or past + i == (0 if pooling == "first" else len(text.tokens) - 1)
        ]
        wanted += [at + i for i in counted]
        owners += [text] * len(counted)
        taken.append((text, rows))
    step = Step(
        np.array(tokens, np.int32),
        np.array(positions, np.int32),
        tuple(spans),
        np.array(wanted, np.int32),
    )
    whose: Iterator[_Text] = iter(owners)
    for block in runner.run(step, state):
        for row in block:
            next(whose).total[:] += row
        # Or it would be there beside the next rows, for which the Plan has no room.
        del block
    for text, rows in taken:
        manager.commit(text.kv, text.tokens, rows, known=False)
        text.rows += rows
