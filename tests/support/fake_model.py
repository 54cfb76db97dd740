"""A model whose next token is a hash of all tokens before it, kept in KV blocks as a real one's.

Any slip in positions, block tables, rows or order changes the tokens it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, Activations, KVCache, LoadedSegment, Step
from strata.backends.kv_types import F32, KVType
from strata.backends.reference import ReferenceBackend
from strata.backends.weights import WeightSource
from strata.engine import Engine, Runner
from strata.program import Builder, KVLayer, Model, Segment, Weight
from strata.quant import BlockType, by_name

VOCABULARY = 97
WIDTH = 4


def model(context_length: int = 4096) -> Model:
    """Embedding, one layer of attention, head."""

    def weight(name: str) -> Weight:
        return Weight(name, (WIDTH,) if name == "norm" else (VOCABULARY, WIDTH), name)

    embed = Builder("embed", weight)
    layer = Builder("layer", weight, {"x": ("T", WIDTH)})
    head = Builder("head", weight, {"x": ("T", WIDTH)})
    x = layer.rms_norm("x", "norm", 1e-5)
    attention = layer.attention(x, x, x, layer=0, heads=1, kv_heads=1, head_dim=WIDTH, scale=1.0)
    segments = (
        embed.build(x=embed.embed("table")),
        layer.build(x=attention),
        head.build(logits=head.matmul(head.select("x"), "table")),
    )
    return Model("fake", segments, (KVLayer(1, WIDTH),), VOCABULARY, WIDTH, context_length)


class NoWeights:
    """Stands for a model file."""

    def type(self, weight: Weight) -> BlockType:
        return by_name("F32")


@dataclass
class FakeSegment:
    segment: Segment
    nbytes: int = 0
    node_times: None = None


class FakeKV:
    """One token a position."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        # Poison: a position that was never written gives tokens nobody expects.
        self.tokens = np.full((blocks, KV_BLOCK), -1, np.int64)
        self.nbytes = self.tokens.nbytes

    def block(self, block: int) -> NDArray[np.uint8]:
        return self.tokens[block].view(np.uint8)


def history_hash(tokens: Sequence[int]) -> int:
    """Of all tokens, in their order."""
    value = 17
    for token in tokens:
        value = (value * 1_000_003 + int(token) + 1) % (2**61 - 1)
    return value


def logits_of(value: int) -> NDArray[np.float32]:
    """The row of logits for a history's hash."""
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

    def load(self, segment: Segment, weights: WeightSource) -> FakeSegment:
        return FakeSegment(segment)

    def kv_cache(
        self, layers: Sequence[KVLayer], blocks: int, kv_type: KVType | None = None
    ) -> FakeKV:
        return FakeKV(blocks)

    def run(
        self, loaded: LoadedSegment, step: Step, kv: KVCache, inputs: Activations
    ) -> dict[str, Any]:
        if self.before:
            self.before(loaded.segment.name)
        assert isinstance(kv, FakeKV)
        if loaded.segment.name == "embed":
            self.steps.append(step)
            assert sum(span.rows for span in step.spans) == len(step.tokens)
            return {"x": step.tokens.astype(np.int64)}
        if loaded.segment.name == "head":
            self.most_rows = max(self.most_rows, len(step.out_rows))
            return {"logits": np.stack([logits_of(int(inputs["x"][r])) for r in step.out_rows])}
        hashes = np.empty(len(step.tokens), np.int64)
        for span in step.spans:
            for i in range(span.rows):
                row, at = span.row + i, span.past + i
                assert step.positions[row] == at
                kv.tokens[span.table[at // KV_BLOCK], at % KV_BLOCK] = inputs["x"][row]
                all_before = kv.tokens[span.table].reshape(-1)[: at + 1]
                hashes[row] = history_hash(all_before.tolist())
        return {"x": hashes}


def fake_engine(backend: FakeBackend | None = None, **options: Any) -> Engine:
    """An Engine over the fake model; no clock has a say in what it does."""
    runner = Runner(backend or FakeBackend(), model(), cast(WeightSource, NoWeights()))
    return Engine(runner, **{"context": 256, "slowdown": None, **options})


def expected_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """What greedy decoding gives, computed without any engine."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(logits_of(history_hash(tokens)))))
    return tokens[len(prompt) :]
