"""A model whose next token is a hash of all that its state holds, kept in blocks as a real one's.

It may keep all tokens, those of a window, and a recurrent state, or several of these. Any slip in
positions, block tables, slots, rows or order changes the tokens it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import (
    KV_BLOCK,
    NO_BLOCK,
    Activations,
    LoadedSegment,
    Span,
    StateCache,
    Step,
)
from strata.backends.kv_types import F32, KVType
from strata.backends.reference import ReferenceBackend
from strata.backends.weights import WeightSource
from strata.engine import Engine, Runner
from strata.program import (
    Builder,
    LayerState,
    Model,
    PagedKV,
    Recurrent,
    Segment,
    Weight,
    state_groups,
)
from strata.quant import BlockType, by_name

VOCABULARY = 97
WIDTH = 4
WINDOW = 100

FULL = (PagedKV(1, WIDTH, WIDTH),)
STATES: dict[str, tuple[LayerState, ...]] = {
    "full": FULL,
    "window": (PagedKV(1, WIDTH, WIDTH, WINDOW),),
    "recurrent": (Recurrent(((2,),)),),
    "full and window": (*FULL, PagedKV(1, WIDTH, WIDTH, WINDOW)),
    "full and recurrent": (*FULL, Recurrent(((2,),))),
    "all": (PagedKV(1, WIDTH, WIDTH, WINDOW), *FULL, Recurrent(((2,),)), PagedKV(1, 4, 4, 30)),
}
"""What a model keeps, by name."""


def model(state: Sequence[LayerState] = FULL, context_length: int = 4096) -> Model:
    """Embedding, one layer, head. What the layer does is the fake backend's business."""

    def weight(name: str) -> Weight:
        return Weight(name, (WIDTH,) if name == "norm" else (VOCABULARY, WIDTH), name)

    embed = Builder("embed", weight)
    layer = Builder("layer", weight, {"x": ("T", WIDTH)})
    head = Builder("head", weight, {"x": ("T", WIDTH)})
    segments = (
        embed.build(x=embed.embed("table")),
        layer.build(x=layer.rms_norm("x", "norm", 1e-5)),
        head.build(logits=head.matmul(head.select("x"), "table")),
    )
    return Model("fake", segments, tuple(state), VOCABULARY, WIDTH, context_length)


class NoWeights:
    """Stands for a model file."""

    def type(self, weight: Weight) -> BlockType:
        return by_name("F32")


class FakeSegment:
    """Nothing is loaded."""

    nbytes = 0
    node_times = None

    def __init__(self, segment: Segment) -> None:
        self.segment = segment


class FakeState:
    """One token a position in paged groups; a hash and a length in a slot."""

    def __init__(self, state: Sequence[LayerState], blocks: Sequence[int]) -> None:
        self.groups = state_groups(state)
        self.blocks = tuple(blocks)
        # Poison: a position that was never written gives tokens nobody expects.
        self.content = [
            np.full((count, 2 if group.recurrent else KV_BLOCK), -1, np.int64)
            for group, count in zip(self.groups, blocks, strict=True)
        ]
        self.nbytes = sum(content.nbytes for content in self.content)

    def block_nbytes(self, group: int) -> int:
        return self.content[group][:1].nbytes

    def copy(self, group: int, source: int, target: int) -> None:
        self.content[group][target] = self.content[group][source]

    def read(self, group: int, block: int, out: NDArray[np.uint8]) -> None:
        out[:] = self.content[group][block].view(np.uint8)

    def write(self, group: int, block: int, data: NDArray[np.uint8]) -> None:
        self.content[group][block] = data.view(np.int64)


def history_hash(tokens: Sequence[int], value: int = 17) -> int:
    """Of all tokens, in their order, after those that gave ``value``."""
    for token in tokens:
        value = (value * 1_000_003 + int(token) + 1) % (2**61 - 1)
    return value


def logits_of(value: int) -> NDArray[np.float32]:
    """The row of logits for a hash."""
    return np.random.Generator(np.random.PCG64(value)).standard_normal(VOCABULARY, np.float32)


class FakeBackend(ReferenceBackend):
    """Counts steps and logits; ``before`` is called before each Segment is run."""

    name = "fake"
    numerics = "fake"
    kv_types = (F32,)

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.most_rows = 0
        self.before: Callable[[str], None] | None = None

    def load(self, segments: Sequence[Segment], weights: WeightSource) -> list[FakeSegment]:
        return [FakeSegment(segment) for segment in segments]

    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> FakeState:
        return FakeState(state, blocks)

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> dict[str, Any]:
        if self.before:
            self.before(loaded.segment.name)
        assert isinstance(state, FakeState)
        if loaded.segment.name == "embed":
            self.steps.append(step)
            assert sum(span.rows for span in step.spans) == len(step.tokens)
            return {"x": step.tokens.astype(np.int64)}
        if loaded.segment.name == "head":
            wanted = step.logits_indices
            self.most_rows = max(self.most_rows, len(wanted))
            return {"logits": np.stack([logits_of(int(inputs["x"][r])) for r in wanted])}
        for span in step.spans:
            self._store(span, step, state)
        hashes = np.empty(len(step.tokens), np.int64)
        for span in step.spans:
            self._hash(span, step, state, hashes)
        return {"x": hashes}

    @staticmethod
    def _store(span: Span, step: Step, state: FakeState) -> None:
        """What rows of a span, and of the spans that it branches off, keep in its tables."""
        at, end, rows = span, span.past + span.rows, []
        while True:
            rows += [(p, int(step.tokens[at.row + p - at.past])) for p in range(at.past, end)]
            if at.parent < 0:
                break
            end, at = at.past, step.spans[at.parent]
        for number, group in enumerate(state.groups):
            if not group.recurrent:
                table = span.tables[number]
                for position, token in rows:
                    assert table[position // KV_BLOCK] != NO_BLOCK
                    place = table[position // KV_BLOCK], position % KV_BLOCK
                    state.content[number][place] = token

    @staticmethod
    def _hash(span: Span, step: Step, state: FakeState, hashes: NDArray[np.int64]) -> None:
        for i in range(span.rows):
            row, at = span.row + i, span.past + i
            assert step.positions[row] == at
            value = 17
            for number, group in enumerate(state.groups):
                if group.recurrent:
                    source, target = span.tables[number]
                    assert source != target
                    past = (17, 0) if source == NO_BLOCK else state.content[number][source]
                    assert int(past[1]) == span.past
                    own = step.tokens[span.row : row + 1].tolist()
                    mixed = history_hash(own, int(past[0]))
                    if i == span.rows - 1:
                        state.content[number][target] = mixed, at + 1
                    value = history_hash([mixed], value)
                else:
                    first = group.first_seen(at)
                    table = span.tables[number][first // KV_BLOCK : at // KV_BLOCK + 1]
                    assert (table != NO_BLOCK).all()
                    kept = state.content[number][table].reshape(-1)
                    base = first // KV_BLOCK * KV_BLOCK
                    value = history_hash(kept[first - base : at + 1 - base].tolist(), value)
            hashes[row] = value


def fake_engine(
    backend: FakeBackend | None = None, state: Sequence[LayerState] = FULL, **options: Any
) -> Engine:
    """An Engine over the fake model."""
    runner = Runner(backend or FakeBackend(), model(state), cast(WeightSource, NoWeights()))
    return Engine(runner, **{"context": 256, **options})


def expected_tokens(
    prompt: Sequence[int], count: int, state: Sequence[LayerState] = FULL
) -> list[int]:
    """What greedy decoding gives, computed without any engine."""
    tokens, groups = list(prompt), state_groups(state)
    for _ in range(count):
        value = 17
        for group in groups:
            seen = tokens[group.first_seen(len(tokens) - 1) :]
            value = history_hash([history_hash(tokens)] if group.recurrent else seen, value)
        tokens.append(int(np.argmax(logits_of(value))))
    return tokens[len(prompt) :]
