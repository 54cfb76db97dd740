"""Gradients of a layer, and rounding that is distilled by them."""

from __future__ import annotations

import numpy as np
import pytest

import make_tiny_models
from strata.backends.weights import WeightSource
from strata.formats import open_model
from strata.models import build_model
from strata.program import Segment
from strata.quant import by_name, dequantize, pruning
from strata.quantizer.distilling import Rounded, distil
from strata.quantizer.encoder import Encoder
from strata.quantizer.gradients import (
    Floats,
    NotDifferentiable,
    check_differentiable,
    gradients,
)
from strata.quantizer.sweeps import Sweep, Window

ROWS = 24


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Segment, dict[str, Floats], Sweep]:
    path = tmp_path_factory.mktemp("layer") / "llama.gguf"
    make_tiny_models.write_gguf(path, make_tiny_models.golden("llama"))
    with open_model(path) as file:
        model = build_model(file, 64)
        segment = next(s for s in model.segments if s.program.inputs and s.outputs[0] != "logits")
        weights = WeightSource(file)
        floats = {w.name: weights.floats(w) for w in segment.weights}
    return segment, floats, Sweep(model, 64, 1)


def window(segment: Segment, floats: dict[str, Floats], seed: int) -> Window:
    width = next(w for n, w in floats.items() if n.endswith("attn_q.weight")).shape[1]
    # Inputs that go together: were each by itself, rounding to the nearest would be the best.
    mixed = np.random.default_rng(0).standard_normal((width // 8, width))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, width // 8)) @ mixed + 0.1 * rng.standard_normal((ROWS, width))
    x = x.astype(np.float32)
    return Window(np.zeros(ROWS, np.int32), {segment.program.inputs[0]: x})


def test_gradients_are_what_small_changes_do(
    layer: tuple[Segment, dict[str, Floats], Sweep],
) -> None:
    segment, floats, sweep = layer
    here = window(segment, floats, 1)
    values = sweep.values(segment, floats, here)
    (output,) = segment.program.outputs
    way = np.random.default_rng(2).standard_normal(values[output].shape).astype(np.float32)
    found = gradients(segment, values, np.arange(ROWS, dtype=np.int32), {output: way})
    rng = np.random.default_rng(3)
    for name, weight in floats.items():
        change = rng.standard_normal(weight.shape).astype(np.float32)
        step = 1e-2 * float(np.abs(weight).mean())

        def loss(sign: int) -> float:
            moved = {**floats, name: weight + np.float32(sign * step) * change}  # noqa: B023
            given = sweep.values(segment, moved, here)[output]
            return float((given.astype(np.float64) * way).sum())

        slope = (loss(1) - loss(-1)) / (2 * step)
        assert slope == pytest.approx(float((found[name] * change).sum()), rel=0.02), name


def test_an_op_without_a_gradient_is_named(
    layer: tuple[Segment, dict[str, Floats], Sweep],
) -> None:
    segment, floats, _ = layer
    op = next(o for o in segment.program.ops if o.kind == "attention")
    op.attrs["softcap"] = 30.0  # type: ignore[index]
    try:
        with pytest.raises(NotDifferentiable, match="attention"):
            check_differentiable(segment)
    finally:
        op.attrs["softcap"] = 0.0  # type: ignore[index]
    check_differentiable(segment)
    assert floats


def test_distilled_rounding_is_nearer_to_the_floats(
    layer: tuple[Segment, dict[str, Floats], Sweep],
) -> None:
    segment, floats, sweep = layer
    encoder, type = Encoder(1), by_name("Q4_0")
    now = [window(segment, floats, seed) for seed in range(8)]
    wanted = sweep.through(segment, floats, now, keep=False, whole=True)
    names = [n for n, w in floats.items() if w.ndim == 2]

    def rounded() -> tuple[dict[str, Floats], list[Rounded]]:
        mine, made = dict(floats), []
        for name in names:
            x, ones = floats[name], np.ones(floats[name].shape[1], np.float32)
            seen = np.empty_like(x)
            raw = encoder.encode(
                type, by_name("F32"), x.reshape(-1).view(np.uint8), x.shape, ones, decoded=seen
            )
            made.append(Rounded(name, type, x, seen, raw, ones))
            mine[name] = seen
        return mine, made

    mine, made = rounded()
    before, after = distil(segment, mine, made, now, wanted, sweep, encoder, 16)
    # It is measured on windows that were not learnt from.
    assert after < 0.8 * before
    for m in made:
        assert np.array_equal(dequantize(type, m.raw, m.plain.shape), m.decoded)
        assert mine[m.weight] is m.decoded
    again, same = rounded()
    distil(segment, again, same, now, wanted, sweep, encoder, 16)
    assert all(np.array_equal(a.raw, b.raw) for a, b in zip(made, same, strict=True))


def test_columns_that_matter_least_can_go(
    layer: tuple[Segment, dict[str, Floats], Sweep],
) -> None:
    segment, floats, sweep = layer
    here = window(segment, floats, 5)
    down = next(n for n in floats if n.endswith("ffn_down.weight"))
    gates = [n for n in floats if n.endswith(("ffn_gate.weight", "ffn_up.weight"))]
    planted = {n: w.copy() for n, w in floats.items()}
    rng = np.random.default_rng(6)
    planted[down] *= np.exp(rng.standard_normal(planted[down].shape[1])).astype(np.float32)
    planted[down][:, 3] = 0
    values = sweep.values(segment, planted, here)
    (output,) = segment.program.outputs
    target = values[output] + rng.standard_normal(values[output].shape).astype(np.float32)
    found = gradients(
        segment, values, np.arange(ROWS, dtype=np.int32), {output: values[output] - target}
    )
    inner = next(
        o.inputs[0] for o in segment.program.ops if o.kind == "matmul" and o.inputs[1] == down
    )
    scores = pruning.taylor(values[inner], found[inner])
    assert scores.argmin() == 3
    assert scores[3] == 0

    def given(keep: np.ndarray) -> Floats:
        kept, narrow = pruning.without_columns([planted[n] for n in gates], planted[down], keep)
        changed = {**planted, **dict(zip(gates, kept, strict=True)), down: narrow}
        return sweep.values(segment, changed, here)[output]

    width = len(scores)
    without = given(np.delete(np.arange(width), 3))
    assert np.abs(without - values[output]).max() <= 1e-5 * np.abs(values[output]).max()

    def loss(y: Floats) -> float:
        return float(((y - target) ** 2).sum()) / 2

    order, whole = np.argsort(scores), loss(values[output])
    some = width // 5
    taylor = abs(loss(given(np.sort(order[some:]))) - whole)
    chance = [abs(loss(given(np.sort(rng.permutation(width)[some:]))) - whole) for _ in range(8)]
    assert taylor < np.mean(chance)
