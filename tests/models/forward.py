"""Runs whole models on the reference backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, Span, Step
from strata.backends.reference import ReferenceBackend
from strata.backends.weights import WeightSource
from strata.formats import ModelFile
from strata.models import build_model


def step(tokens: Sequence[int], past: int = 0, table: Sequence[int] | None = None) -> Step:
    """One sequence's step whose every row gives logits; blocks in order unless listed."""
    count = len(tokens)
    blocks = range(-(-(past + count) // KV_BLOCK)) if table is None else table
    return Step(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(past, past + count, dtype=np.int32),
        spans=(Span(0, count, past, np.array(blocks, np.int32)),),
        out_rows=np.arange(count, dtype=np.int32),
    )


def logits(
    file: ModelFile,
    tokens: Sequence[int],
    context: int | None = None,
    chunks: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """float32 [tokens, vocabulary]; ``chunks`` cuts the tokens into steps."""
    model = build_model(file, context)
    backend = ReferenceBackend()
    source = WeightSource(file)
    segments = [backend.load(segment, source) for segment in model.segments]
    kv = backend.kv_cache(model.kv, -(-len(tokens) // KV_BLOCK))
    rows, past = [], 0
    for count in chunks or [len(tokens)]:
        values: dict[str, NDArray[np.float32]] = {}
        for segment in segments:
            values = backend.run(segment, step(tokens[past : past + count], past), kv, values)
        rows.append(values["logits"])
        past += count
    assert past == len(tokens)
    return np.concatenate(rows)
