"""Sequences of a model on a backend, with block tables as an engine makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, NO_BLOCK, Backend, Span, Step
from strata.backends.kv_types import KVType
from strata.program import Model
from support.small_programs import Floats, MemoryWeights, all_logits


@dataclass
class Branching:
    """A sequence: how many positions it has, and its table in each group. ``parent`` is the number
    of the span, within the next step, that it branches off."""

    tables: list[list[int]]
    length: int = 0
    parent: int = -1
    tokens: list[int] = field(default_factory=list)


class StateRuns:
    """Hands blocks out in no order, and fills those that come back with what no row may see."""

    def __init__(
        self,
        model: Model,
        weights: MemoryWeights,
        backend: Backend,
        *,
        blocks: int = 40,
        kv_type: KVType | None = None,
        keeps_all: bool = False,
    ) -> None:
        self.model, self.backend, self.keeps_all = model, backend, keeps_all
        self.segments = backend.load(model.segments, weights)  # type: ignore[arg-type]
        self.state = backend.state_cache(model.state, (blocks,) * len(model.groups), kv_type)
        order = np.random.default_rng(7)
        self.free = [order.permutation(blocks).tolist() for _ in model.groups]

    def sequence(self) -> Branching:
        """One without any position."""
        tables: list[list[int]] = []
        for number, group in enumerate(self.model.groups):
            tables.append([NO_BLOCK, self.free[number].pop()] if group.recurrent else [])
        return Branching(tables)

    def branch(self, of: Branching, length: int, parent: int) -> Branching:
        """One with the first ``length`` positions of another, of which ``of.length`` have been
        computed, and with blocks of its own from there on."""
        first = of.length // KV_BLOCK
        out = Branching([table[:first] for table in of.tables], length, parent)
        for number, table in enumerate(out.tables):
            if of.length % KV_BLOCK:
                table.append(self.free[number].pop())
                self.state.copy(number, of.tables[number][first], table[first])
        return out

    def run(self, work: Sequence[tuple[Branching, Sequence[int]]]) -> list[Floats]:
        """Advance sequences by tokens in one step; the logits of all rows of each."""
        spans, row = [], 0
        for sequence, tokens in work:
            self._reserve(sequence, len(tokens))
            tables = tuple(np.array(table, np.int32) for table in sequence.tables)
            spans.append(Span(row, len(tokens), sequence.length, tables, sequence.parent))
            row += len(tokens)
        positions = [np.arange(s.past, s.past + s.rows, dtype=np.int32) for s in spans]
        step = Step(
            np.array([t for _, tokens in work for t in tokens], np.int32),
            np.concatenate(positions),
            tuple(spans),
            np.arange(row, dtype=np.int32),
        )
        logits = self._logits(step)
        for sequence, tokens in work:
            sequence.length += len(tokens)
            sequence.tokens += tokens
            self._turn(sequence)
            self._give_back(sequence)
        return np.split(logits, np.cumsum([s.rows for s in spans])[:-1])

    def _turn(self, sequence: Branching) -> None:
        """The slot that was written is the state now; the one that was read is of no use."""
        for number, group in enumerate(self.model.groups):
            if group.recurrent:
                before, now = sequence.tables[number]
                self._poison(number, before)
                sequence.tables[number] = [now, self.free[number].pop()]

    def free_all(self, sequence: Branching, shared: int = 0) -> None:
        """Give back blocks, but for the first ``shared`` of each table."""
        for number, table in enumerate(sequence.tables):
            for block in table[shared:]:
                self._poison(number, block)

    def _logits(self, step: Step) -> Floats:
        return all_logits(self.backend, self.segments, step, self.state)

    def _reserve(self, sequence: Branching, rows: int) -> None:
        for number, group in enumerate(self.model.groups):
            table = sequence.tables[number]
            while not group.recurrent and len(table) * KV_BLOCK < sequence.length + rows:
                table.append(self.free[number].pop())

    def _give_back(self, sequence: Branching) -> None:
        for number, group in enumerate(self.model.groups):
            if self.keeps_all or group.recurrent or sequence.parent >= 0:
                continue
            table = sequence.tables[number]
            beginning = -(-group.beginning // KV_BLOCK)
            for i in range(beginning, group.first_seen(sequence.length) // KV_BLOCK):
                if table[i] != NO_BLOCK:
                    self._poison(number, table[i])
                    table[i] = NO_BLOCK

    def _poison(self, group: int, block: int) -> None:
        if block == NO_BLOCK:
            return
        # All bits set are NaN in every float type, and in the scales of q8_0.
        poison: NDArray[np.uint8] = np.full(self.state.block_nbytes(group), 255, np.uint8)
        self.state.write(group, block, poison)
        self.free[group].insert(0, block)
