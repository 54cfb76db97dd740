"""Runs whole models on a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, NO_BLOCK, Activations, Backend, Span, Step
from strata.backends.reference import ReferenceBackend
from strata.backends.settings import MAX_LOGIT_ROWS
from strata.backends.weights import WeightSource
from strata.formats import ModelFile
from strata.models import build_model, embedding_model


def step(
    tokens: Sequence[int], past: int = 0, table: Sequence[int] | None = None, groups: int = 1
) -> Step:
    """One sequence's step whose every row gives logits; blocks in order unless listed, the same in
    every group of layers."""
    count = len(tokens)
    blocks = range(-(-(past + count) // KV_BLOCK)) if table is None else table
    return Step(
        tokens=np.array(tokens, np.int32),
        positions=np.arange(past, past + count, dtype=np.int32),
        spans=(Span(0, count, past, (np.array(blocks, np.int32),) * groups),),
        logits_indices=np.arange(count, dtype=np.int32),
    )


class Forward:
    """A model file, loaded once, on the reference backend unless another one is given."""

    def __init__(
        self,
        file: ModelFile,
        context: int | None = None,
        backend: Backend | None = None,
        *,
        embedding: bool = False,
    ) -> None:
        self.model = build_model(file, context)
        if embedding:
            self.model = embedding_model(self.model)
        self.backend = backend or ReferenceBackend()
        source = WeightSource(file)
        self.segments = self.backend.load(self.model.segments, source)

    def logits(
        self, tokens: Sequence[int], chunks: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """float32 [tokens, vocabulary], or embeddings where the model gives them; ``chunks`` cuts
        the tokens into steps."""
        groups = len(self.model.groups)
        blocks = (-(-len(tokens) // KV_BLOCK),) * groups
        blocks = tuple(
            2 if group.recurrent else count
            for group, count in zip(self.model.groups, blocks, strict=True)
        )
        state = self.backend.state_cache(self.model.state, blocks)
        recurrent = [group.recurrent for group in self.model.groups]
        (given,) = self.model.segments[-1].outputs
        settings = getattr(self.backend, "settings", None)
        most: int = getattr(settings, "max_logit_rows", MAX_LOGIT_ROWS)
        rows, past = [], 0
        for number, count in enumerate(chunks or [len(tokens)]):
            values: Activations = {}
            # Of a state of fixed size two slots in turn.
            slots = np.array([1 - number % 2 if past else NO_BLOCK, number % 2], np.int32)
            for segment in self.segments:
                part = step(tokens[past : past + count], past, groups=groups)
                (span,) = part.spans
                tables = tuple(
                    slots if fixed else table
                    for fixed, table in zip(recurrent, span.tables, strict=True)
                )
                part = replace(part, spans=(replace(span, tables=tables),))
                if segment is not self.segments[-1]:
                    values = self.backend.run(segment, part, state, values)
                    continue
                # A backend has room for so many rows of logits at a time.
                for first in range(0, count, most):
                    some = part.logits_indices[first : first + most]
                    out = self.backend.run(
                        segment, replace(part, logits_indices=some), state, values
                    )
                    rows.append(self.backend.export(out, (given,))[given])
            past += count
        assert past == len(tokens)
        return np.concatenate(rows)


def logits(
    file: ModelFile,
    tokens: Sequence[int],
    context: int | None = None,
    chunks: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """One sequence through a model that is loaded for it."""
    return Forward(file, context).logits(tokens, chunks)
