"""Sequences that share steps at random, for what must depend on each of them alone."""

from __future__ import annotations

import numpy as np

from strata.backends.base import NO_BLOCK, Backend, Span, Step
from support.small_programs import Floats, Lab

SEQUENCES = 3
MOST_ROWS = 20
"""Of one sequence in a step."""


def run_mixed(lab: Lab, backend: Backend, rng: np.random.Generator) -> list[Floats]:
    """The logits of ``lab`` with one recurrent layer, computed for several sequences side by side,
    each in cuts of its own."""
    loaded = lab.load(backend)
    # Two slots for each sequence, the first of another step already in them.
    loaded.state = backend.state_cache(lab.state, (2 * SEQUENCES,))
    done = [0] * SEQUENCES
    out: list[list[Floats]] = [[] for _ in done]
    slots = [(NO_BLOCK, NO_BLOCK)] * SEQUENCES
    while min(done) < len(lab.x):
        spans: dict[int, Span] = {}
        row = 0
        for i in rng.permutation(SEQUENCES).tolist():
            count = min(int(rng.integers(0, MOST_ROWS)), len(lab.x) - done[i])
            if count:
                slots[i] = slots[i][1], 2 * i + (slots[i][1] == 2 * i)
                spans[i] = Span(row, count, done[i], (np.array(slots[i], np.int32),))
                row += count
        if not spans:
            continue
        ids = np.concatenate(
            [np.arange(s.past, s.past + s.rows, dtype=np.int32) for s in spans.values()]
        )
        step = Step(ids, ids, tuple(spans.values()), np.arange(row, dtype=np.int32))
        logits = loaded.step(step)
        for i, span in spans.items():
            out[i].append(logits[span.row : span.row + span.rows])
            done[i] += span.rows
    return [np.concatenate(parts) for parts in out]
