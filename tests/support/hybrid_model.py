"""A small model that keeps every kind of state, with its weights in memory.

Seven layers: attention over everything, a convolution, two windows, values that are part of keys,
and two layers that read what earlier ones keep. So there are four groups: what sees everything
(layers 0 and 4), windows of 150 and 70 positions (layers 3 and 2), and recurrent state (layer 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strata.program import Builder, LayerState, Model, PagedKV, Recurrent, Segment, Shared
from support.small_programs import MemoryWeights

VOCABULARY, WIDTH, TAPS = 101, 48, 4

STATE: tuple[LayerState, ...] = (
    PagedKV(2, 16, 16),
    Recurrent(((TAPS - 1, WIDTH),)),
    PagedKV(1, 24, 16, window=70),
    PagedKV(1, 16, 16, window=150),
    PagedKV(1, 40, 32, v_in_k=True),
    Shared(2),
    Shared(4),
)
HEADS = 2


def hybrid_model(
    state: Sequence[LayerState] = STATE, context_length: int = 4096
) -> tuple[Model, MemoryWeights]:
    """The model and its weights; ``state`` gives other layers than the usual seven."""
    arrays = {"table": _draw(0, VOCABULARY, WIDTH) * 4}
    for number, layer in enumerate(state):
        arrays |= {f"{number}.{name}": a for name, a in _arrays(number, layer, state).items()}
    weights = MemoryWeights(arrays)
    embed = Builder("embed", weights)
    head = Builder("head", weights, {"x": ("T", WIDTH)})
    segments = (
        embed.build(x=embed.embed("table")),
        *(_layer(number, layer, state, weights) for number, layer in enumerate(state)),
        head.build(logits=head.matmul(head.select("x"), "table")),
    )
    model = Model("hybrid", segments, tuple(state), VOCABULARY, WIDTH, context_length)
    return model, weights


def _draw(seed: int, rows: int, width: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, width)) / np.sqrt(width)
    return x.astype(np.float32)


def _kept(layer: LayerState, state: Sequence[LayerState]) -> PagedKV:
    kept = state[layer.layer] if isinstance(layer, Shared) else layer
    assert isinstance(kept, PagedKV)
    return kept


def _arrays(number: int, layer: LayerState, state: Sequence[LayerState]) -> dict[str, np.ndarray]:
    norm = {"norm": np.linspace(0.5, 1.5, WIDTH, dtype=np.float32)}
    seed = 10 * number + 1
    if isinstance(layer, Recurrent):
        ((before, _),) = layer.shapes
        return norm | {"taps": _draw(seed, WIDTH, before + 1)}
    kept = _kept(layer, state)
    out = norm | {
        "q": _draw(seed, HEADS * kept.k_dim, WIDTH) * 2,
        "o": _draw(seed + 1, WIDTH, HEADS * kept.v_dim),
    }
    if not isinstance(layer, Shared):
        out["k"] = _draw(seed + 2, kept.kv_heads * kept.k_dim, WIDTH)
        if not kept.v_in_k:
            out["v"] = _draw(seed + 3, kept.kv_heads * kept.v_dim, WIDTH)
    return out


def _layer(
    number: int, layer: LayerState, state: Sequence[LayerState], weights: MemoryWeights
) -> Segment:
    b = Builder(f"layer.{number}", weights, {"x": ("T", WIDTH)})
    h = b.rms_norm("x", f"{number}.norm", 1e-5)
    if isinstance(layer, Recurrent):
        return b.build(x=b.add("x", b.short_conv(h, f"{number}.taps", layer=number)))
    kept, own = _kept(layer, state), not isinstance(layer, Shared)
    q, k, v = (
        b.matmul(h, f"{number}.{name}")
        if name == "q" or f"{number}.{name}" in weights.arrays
        else None
        for name in "qkv"
    )
    assert q is not None
    mixed = b.attention(
        *(q, k, v),
        layer=number if own else layer.layer,  # type: ignore[union-attr]
        heads=HEADS,
        kv_heads=kept.kv_heads,
        k_dim=kept.k_dim,
        v_dim=kept.v_dim,
        scale=kept.k_dim**-0.5,
        window=kept.window,
    )
    return b.build(x=b.add("x", b.matmul(mixed, f"{number}.o")))
