"""Each Op of the reference backend against its definition written out in float64 loops.

Inputs are of size 1 and sums have up to 150 terms: float32 rounding stays below 2e-5.
"""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, Span, Step
from strata.backends.kv_types import BF16, F16, F32, Q8_0
from strata.backends.reference import ReferenceBackend, ReferenceState, dense
from strata.backends.reference.attention import attention
from strata.backends.weights import WeightError, WeightSource
from strata.formats import TensorInfo
from strata.program import Builder, PagedKV, Weight
from strata.quant import by_name

Floats = NDArray[np.float32]
TOLERANCE = 2e-5


def random(*shape: int) -> Floats:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


def close(found: object, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_embed_scales_rows() -> None:
    table = random(5, 4)
    found = dense.embed(table, np.array([3, 0, 3], np.int32), 2.0)
    np.testing.assert_array_equal(found, 2 * table[[3, 0, 3]])


@pytest.mark.parametrize("groups", [1, 3])
def test_rms_norm_over_groups(groups: int) -> None:
    x, weight = random(2, 12), random(12 // groups)
    found = dense.rms_norm(x, weight, 0.1)
    for row in range(2):
        for g in range(groups):
            part = [float(v) for v in np.split(x[row], groups)[g]]
            size = math.sqrt(sum(v * v for v in part) / len(part) + 0.1)
            expected = [v / size * float(w) for v, w in zip(part, weight, strict=True)]
            close(np.split(found[row], groups)[g], expected)


def test_layer_norm() -> None:
    x, weight, bias = random(3, 8), random(8), random(8)[::-1]
    centred = x.astype(np.float64) - x.mean(axis=1, keepdims=True, dtype=np.float64)
    size = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-3)
    close(dense.layer_norm(x, weight, bias, 1e-3), centred / size * weight + bias)
    close(dense.layer_norm(x, weight, None, 1e-3), centred / size * weight)


@pytest.mark.parametrize("style", ["neox", "interleaved"])
def test_rope_turns_pairs_as_complex_numbers(style: str) -> None:
    head_dim, inv_freq, factors = 8, [1.0, 0.3, 0.01], np.array([1.0, 2.0, 4.0], np.float32)
    x, positions = random(4, 2 * head_dim), np.array([0, 1, 7, 100], np.int32)
    found = dense.rope(
        x, positions, inv_freq, factors, head_dim=head_dim, style=style, mscale=1.5
    ).reshape(4, 2, head_dim)
    heads = x.reshape(4, 2, head_dim)
    for row, position in enumerate(positions):
        for head in range(2):
            # Dimensions beyond the six that turn stay as they are, unscaled.
            np.testing.assert_array_equal(found[row, head, 6:], heads[row, head, 6:])
            for i, frequency in enumerate(inv_freq):
                a, b = (i, i + 3) if style == "neox" else (2 * i, 2 * i + 1)
                turn = cmath.rect(1.5, float(position) * frequency / float(factors[i]))
                value = complex(heads[row, head, a], heads[row, head, b]) * turn
                close([found[row, head, a], found[row, head, b]], [value.real, value.imag])


@pytest.mark.parametrize(
    ("function", "definition"),
    [
        ("silu", lambda v: v / (1 + math.exp(-v))),
        ("gelu", lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2)))),
        (
            "gelu_tanh",
            lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
        ),
        ("relu", lambda v: max(v, 0.0)),
        ("relu2", lambda v: max(v, 0.0) ** 2),
    ],
)
def test_activations(function: str, definition: object) -> None:
    x = np.linspace(-20, 20, 401, dtype=np.float32)
    close(dense.activate(x, function), [definition(float(v)) for v in x])  # type: ignore[operator]


def test_silu_of_very_negative_numbers_is_zero() -> None:
    assert dense.activate(np.array([-1000.0], np.float32), "silu")[0] == 0


def attend(
    q: Floats, k: Floats, v: Floats, past: int, scale: float, window: int, cap: float
) -> NDArray[np.float64]:
    """The definition: q [rows, heads, dim]; k, v [keys, kv_heads, dim]."""
    rows, heads, dim = q.shape
    group = heads // k.shape[1]
    out = np.zeros((rows, heads, dim))
    for row in range(rows):
        position = past + row
        first = max(0, position - window + 1) if window else 0
        for head in range(heads):
            scores = []
            for key in range(first, position + 1):
                score = float(q[row, head].astype(np.float64) @ k[key, head // group]) * scale
                scores.append(cap * math.tanh(score / cap) if cap else score)
            weights = np.exp(np.array(scores) - max(scores))
            out[row, head] = weights / weights.sum() @ v[first : position + 1, head // group]
    return out


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (5, 0.0), (0, 2.0), (1, 1.0), (200, 0.0)])
def test_attention_in_chunks_over_scattered_blocks(heads: int, window: int, cap: float) -> None:
    """Two sequences with blocks in no order, advanced by unequal chunks in shared steps."""
    kv_heads, dim, lengths = 1, 4, (150, 70)
    tables = (np.array([4, 0, 2], np.int32), np.array([3, 1], np.int32))
    q = [random(n, heads, dim) for n in lengths]
    k = [random(n, kv_heads, dim) + 0.1 for n in lengths]
    v = [random(n, kv_heads, dim)[::-1] for n in lengths]
    state = ReferenceState([PagedKV(kv_heads, dim, dim)], [5])
    attrs = {
        "layer": 0,
        "heads": heads,
        "kv_heads": kv_heads,
        "k_dim": dim,
        "v_dim": dim,
        "scale": 0.7,
        "window": window,
        "softcap": cap,
        "alibi": 0.0,
        "causal": True,
        "chunked": False,
        "sinks": False,
        "beginning": 0,
        "read": 0,
        "chosen": False,
    }
    found: list[list[Floats]] = [[], []]
    for chunk in (((0, 63), (0, 1)), ((63, 2), (1, 69)), ((65, 85), (70, 0))):
        spans, rows, parts = [], 0, []
        for i, (past, n) in enumerate(chunk):
            if n:
                spans.append(Span(rows, n, past, (tables[i],)))
                parts.append((i, slice(past, past + n)))
                rows += n
        empty = np.zeros(0, np.int32)
        step = Step(empty, empty, tuple(spans), empty)
        joined = [
            np.concatenate([a[i][s].reshape(s.stop - s.start, -1) for i, s in parts])
            for a in (q, k, v)
        ]
        out = attention(attrs, (joined[0], [*joined[1:], None, None, None]), step, state)
        for (i, _), span in zip(parts, spans, strict=True):
            found[i].append(out[span.row : span.row + span.rows])
    for i, n in enumerate(lengths):
        expected = attend(q[i], k[i], v[i], 0, 0.7, window, cap).reshape(n, -1)
        close(np.concatenate(found[i]), expected)


def test_kv_blocks_hold_all_layers() -> None:
    state = ReferenceBackend().state_cache([PagedKV(2, 8, 8), PagedKV(1, 4, 4)], [3])
    assert state.nbytes == 2 * 3 * KV_BLOCK * (2 * 8 + 4) * 4
    keys, values = state.kv(1)
    keys[2], values[2] = 5, 7

    def block(number: int) -> Floats:
        out = np.empty(state.block_nbytes(0), np.uint8)
        state.read(0, number, out)
        return out.view(np.float32)

    assert np.count_nonzero(block(2)) == 2 * KV_BLOCK * 4
    assert not block(1).any()
    state.copy(0, 2, 1)
    assert (keys[1] == 5).all()
    assert (values[1] == 7).all()
    state.write(0, 0, block(1).view(np.uint8))
    assert (keys[0] == 5).all()
    with pytest.raises(IndexError, match="no block 3"):
        state.copy(0, 0, 3)


def test_kv_types_by_hand() -> None:
    x = np.array([[1.0, -0.3, 1e9, 1e-9]], np.float32)
    assert F32.stored(x).tolist() == x.tolist()
    assert F16.stored(x).tolist() == [[1.0, float(np.float16(-0.3)), 65504.0, 0.0]]
    # bf16 keeps 8 bits: 0.3 = 1.2 * 2^-2 becomes 1.203125 * 2^-2.
    assert BF16.stored(x)[0, :2].tolist() == [1.0, -0.30078125]
    row = np.zeros(33, np.float32)
    row[:3], row[32] = [127, -63.4, 0.5], 2.0
    assert Q8_0.stored(row)[:3].tolist() == [127, -63, 0]  # ties go to even
    assert abs(Q8_0.stored(row)[32] - 2) <= 2 * 2.0**-11
    tiny = np.full(32, 1e-12, np.float32)
    assert not Q8_0.stored(tiny).any()


class OneTensor:
    """Stands for an opened file."""

    def __init__(self, array: Floats) -> None:
        self.array = array
        fields = ("w", array.shape, by_name("F32"), None, 0, array.nbytes)
        self.tensors = {"w": TensorInfo(*fields)}  # type: ignore[arg-type]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        assert name == "w"
        part = self.array if rows is None else self.array[slice(*rows)]
        return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (Weight("m", (6, 4), "w"), lambda w: w),
        (Weight("m", (2, 4), "w", (3, 5)), lambda w: w[3:5]),
        (Weight("m", (4, 6), "w", None, "transpose"), lambda w: w.T),
        (Weight("m", (2, 6), "w", (1, 3), "transpose"), lambda w: w.T[1:3]),
        (Weight("m", (6, 4), "w", None, "add_one"), lambda w: w + 1),
    ],
)
def test_weights_are_cut_and_turned_on_the_way_in(weight: Weight, expected: object) -> None:
    stored = random(6, 4)
    source = WeightSource(OneTensor(stored))  # type: ignore[arg-type]
    b = Builder("s", lambda _: weight, {"x": ("T", 8)})
    b.embed("m")
    segment = b.build(out="embed.0")
    (loaded,) = ReferenceBackend().load([segment], source)
    np.testing.assert_array_equal(loaded.weights["m"], expected(stored))  # type: ignore[operator]
    assert loaded.nbytes == loaded.weights["m"].nbytes


def test_a_blocked_weight_cannot_be_turned() -> None:
    file = OneTensor(random(8, 32))
    info = file.tensors["w"]
    file.tensors["w"] = type(info)("w", (8, 32), by_name("Q8_0"), info.path, 0, 8 * 34)
    with pytest.raises(WeightError, match=r"'w': Q8_0 cannot be transposed"):
        WeightSource(file).raw(Weight("m", (32, 8), "w", None, "transpose"))  # type: ignore[arg-type]
