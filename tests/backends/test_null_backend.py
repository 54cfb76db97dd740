"""The null backend: what SmolLM2 and a tiny model must cost, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from strata.backends.base import KV_BLOCK, Span, Step
from strata.backends.null import NullBackend, NullState
from strata.backends.weights import WeightSource
from strata.formats import ModelFile, open_model
from strata.models import build_model
from strata.program import Cost
from support.hybrid_model import WIDTH as WIDTH_OF_HYBRID
from support.hybrid_model import hybrid_model

LAYERS, WIDTH, KV_WIDTH, FFN, VOCABULARY = 30, 576, 192, 1536, 49152
# Multiply-adds of one token through all layers, and through the head.
LAYER_PRODUCTS = 2 * WIDTH * WIDTH + 2 * WIDTH * KV_WIDTH + 3 * WIDTH * FFN
HEAD_PRODUCTS = VOCABULARY * WIDTH


def step(spans: list[tuple[int, int]], logit_rows: int) -> Step:
    """A step of sequences given as (past, rows)."""
    rows = sum(n for _, n in spans)
    starts = np.cumsum([0] + [n for _, n in spans])
    positions = [past + i for past, n in spans for i in range(n)]
    blocks = np.arange(100, dtype=np.int32)
    return Step(
        tokens=np.zeros(rows, np.int32),
        positions=np.array(positions, np.int32),
        spans=tuple(
            Span(int(start), n, past, (blocks,))
            for start, (past, n) in zip(starts[:-1], spans, strict=True)
        ),
        logits_indices=np.arange(logit_rows, dtype=np.int32),
    )


def count(file: ModelFile, *steps: Step) -> tuple[NullBackend, dict[str, np.ndarray]]:
    """Run steps through all Segments; the backend and the last outputs."""
    model = build_model(file)
    backend = NullBackend()
    source = WeightSource(file)
    loaded = backend.load(model.segments, source)
    state = backend.state_cache(model.state, [1])
    values: dict[str, np.ndarray] = {}
    for one in steps:
        values = {}
        for segment in loaded:
            values = backend.run(segment, one, state, values)
    return backend, values


def of_kind(backend: NullBackend, kind: str) -> Cost:
    parts = [cost for (_, op), cost in backend.costs.items() if op.startswith(f"{kind}.")]
    return sum(parts, Cost())


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> ModelFile:
    return open_model(smollm2_path)


def test_a_decoded_token_reads_every_weight_once(smollm2: ModelFile) -> None:
    backend, values = count(smollm2, step([(99, 1)], 1))
    # The table is read whole by the tied head, and one row of it (18 blocks of 34 bytes) to embed.
    assert backend.total.weight_bytes == smollm2.nbytes + 18 * 34
    assert round(smollm2.nbytes / 1e6, 1) == 96.6
    assert of_kind(backend, "matmul").flops == 2 * (LAYERS * LAYER_PRODUCTS + HEAD_PRODUCTS)
    # 99 positions before and its own, each k and v of 3 heads of 64 in 2 bytes, and one written.
    assert backend.total.kv_bytes == LAYERS * (100 + 1) * 2 * KV_WIDTH * 2
    assert of_kind(backend, "attention").flops == LAYERS * 4 * 100 * WIDTH
    assert values["logits"].shape == (1, VOCABULARY)
    assert not values["logits"].any()


def test_a_prompt_reads_weights_once_for_all_its_tokens(smollm2: ModelFile) -> None:
    rows = 512
    backend, values = count(smollm2, step([(0, rows)], 1))
    assert backend.total.weight_bytes == smollm2.nbytes + rows * 18 * 34
    products = 2 * (rows * LAYERS * LAYER_PRODUCTS + HEAD_PRODUCTS)
    assert of_kind(backend, "matmul").flops == products
    # Row i sees i + 1 keys.
    assert of_kind(backend, "attention").flops == LAYERS * 4 * WIDTH * rows * (rows + 1) // 2
    assert backend.total.kv_bytes == LAYERS * (rows + rows) * 2 * KV_WIDTH * 2
    assert values["logits"].shape == (1, VOCABULARY)


def test_sequences_and_steps_add_up(smollm2: ModelFile) -> None:
    together, _ = count(smollm2, step([(10, 1), (0, 7), (300, 2)], 3))
    apart = [count(smollm2, step([span], 1))[0] for span in ((10, 1), (0, 7), (300, 2))]
    assert together.total.flops == sum(b.total.flops for b in apart)
    assert together.total.kv_bytes == sum(b.total.kv_bytes for b in apart)
    # ... but the weights of the layers and the head were read three times as often apart.
    extra = sum(b.total.weight_bytes for b in apart) - together.total.weight_bytes
    assert extra == 2 * smollm2.nbytes
    twice, _ = count(smollm2, step([(10, 1)], 1), step([(10, 1)], 1))
    assert twice.total == apart[0].total + apart[0].total
    assert sum(together.by_segment().values(), Cost()) == together.total
    assert len(together.by_segment()) == LAYERS + 2


def test_nothing_is_held(smollm2: ModelFile) -> None:
    model = build_model(smollm2)
    backend = NullBackend()
    source = WeightSource(smollm2)
    held = sum(s.nbytes for s in backend.load(model.segments, source))
    table = smollm2.tensors["token_embd.weight"].nbytes
    assert held == smollm2.nbytes + table
    state = backend.state_cache(model.state, [4])
    assert isinstance(state, NullState)
    assert state.nbytes == 4 * KV_BLOCK * LAYERS * 2 * KV_WIDTH * 2


def test_every_kind_of_state_counts() -> None:
    model, weights = hybrid_model()
    backend = NullBackend()
    state = backend.state_cache(model.state, [1, 2, 3, 4])
    full, wide, narrow, slot = (state.block_nbytes(g) for g in range(4))
    # Two bytes a number; rows of values are whole vectors of 16, and slots whole cache lines.
    assert (full, wide) == (2 * 64 * (2 * (16 + 16) + 40), 2 * 64 * (16 + 16))
    assert (narrow, slot) == (2 * 64 * (24 + 16), 4 * 3 * WIDTH_OF_HYBRID)
    assert state.nbytes == full + 2 * wide + 3 * narrow + 4 * slot
    loaded = backend.load(model.segments, weights)  # type: ignore[arg-type]
    for segment in loaded:
        backend.run(segment, step([(199, 1), (10, 2)], 1), state, {})
    kept = {name: cost.kv_bytes for name, cost in backend.by_segment().items()}
    # Positions that a sequence's rows see and those written, times numbers, times two bytes.
    assert kept["layer.0"] == (200 + 1 + 12 + 2) * 2 * (16 + 16) * 2
    assert kept["layer.1"] == 2 * 2 * slot
    assert kept["layer.2"] == (70 + 1 + 12 + 2) * (24 + 16) * 2
    assert kept["layer.4"] == (200 + 1 + 12 + 2) * 40 * 2
    assert kept["layer.5"] == (70 + 12) * (24 + 16) * 2
    # Rows at 199 (of which 70 are seen), 10 and 11: two heads, keys of 24 and values of 16.
    attention = backend.costs["layer.2", "attention.4"]
    assert attention.flops == 2 * (70 + 11 + 12) * 2 * (24 + 16)
    (taps,) = [c for (s, op), c in backend.costs.items() if op.startswith("short_conv.")]
    assert taps.weight_bytes == 4 * 4 * WIDTH_OF_HYBRID
    assert taps.flops == 2 * 3 * 4 * WIDTH_OF_HYBRID
