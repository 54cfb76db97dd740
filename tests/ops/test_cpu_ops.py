"""Every Op on the native backend against its one obvious numpy function, per instruction set.

Tolerances: float32 products and sums differ by at most (terms + a few) * 2^-24 of the sum of the
magnitudes that are added, whatever their order.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import KV_TYPES, KVType, choose_kv_type
from strata.backends.reference import ReferenceBackend
from strata.program import PagedKV, Recurrent, Shared, state_groups
from strata.program.ops import ACTIVATIONS
from support.sampling import every
from support.small_programs import Floats, Lab

EPS = 2.0**-24
ISAS = available_isas()
WIDTHS = [1, 7, 16, 31, 64, 100, 576]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def both(lab: Lab, isa: str, threads: int = 2) -> tuple[Floats, Floats]:
    return lab.run(CpuBackend(threads=threads, isa=isa)), lab.run(ReferenceBackend())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms(isa: str, width: int) -> None:
    x, w, b = draw(5, width), draw(width, seed=1), draw(width, seed=2)
    arrays = {"w": w, "b": b}
    for body in (
        lambda m, x: m.rms_norm(x, "w", 1e-5),
        lambda m, x: m.layer_norm(x, "w", None, 1e-5),
        lambda m, x: m.layer_norm(x, "w", "b", 1e-5),
    ):
        got, want = both(Lab(x, arrays, body), isa)
        # The norm's factor is off by (width + 8) eps; a centred value by width eps of the mean.
        bound = (2 * width + 16) * EPS * (np.abs(x).max() + 1) * (np.abs(w) + np.abs(b))
        centred = 1 / np.sqrt(np.var(x, axis=1, keepdims=True) + 1e-5)
        factor = np.maximum(centred, 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5))
        assert np.all(np.abs(got - want) <= bound * np.maximum(1, factor) ** 3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads", [1, 3])
def test_head_norm(isa: str, heads: int) -> None:
    x = draw(4, heads * 24)
    lab = Lab(x, {"w": draw(24, seed=1)}, lambda m, x: m.rms_norm(x, "w", 1e-6))
    got, want = both(lab, isa)
    assert np.allclose(got, want, rtol=40 * EPS, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", ACTIVATIONS)
@pytest.mark.parametrize("width", [3, 16, 50, 1536])
def test_activations(isa: str, function: str, width: int) -> None:
    x = draw(3, width, scale=4)
    x[0, :3] = [-100, 0, 100]
    # exp and tanh to 2 ulp; the error function to 1.5e-7 and six roundings of numbers near 1.
    erf = 0.5 * (1.5e-7 + 6 * EPS) + 2 * EPS
    bound = (erf if function == "gelu" else 8 * EPS) * np.abs(x) + 1e-30
    if function in ("sigmoid", "softplus"):
        # Not near 0 where x is.
        bound = 8 * EPS * (np.abs(x) + 1)
    if function == "relu2":
        bound = 2 * EPS * x * x
    if function == "exp":
        x = np.clip(x, -80, 80)
        bound = 8 * EPS * np.exp(x)
    lab = Lab(x, {}, lambda m, x: m.activation(x, function))
    got, want = both(lab, isa)
    assert np.all(np.abs(got - want) <= bound)
    # glu of a value with itself: the activation times the value.
    lab = Lab(x, {}, lambda m, x: m.glu(x, x, function))
    got, want = both(lab, isa)
    assert np.all(np.abs(got - want) <= (bound + EPS * np.abs(want)) * (np.abs(x) + 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", ACTIVATIONS)
def test_nan_reaches_what_is_activated(isa: str, function: str) -> None:
    x = draw(2, 20)
    x[1, [3, 18]] = np.nan
    for got in both(Lab(x, {}, lambda m, x: m.activation(x, function)), isa):
        assert np.array_equal(np.isnan(got), np.isnan(x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 17, 64])
def test_elementwise(isa: str, width: int) -> None:
    x = draw(6, width, scale=30)
    for body in (
        lambda m, x: m.add(x, m.scale(x, 0.3)),
        lambda m, x: m.scale(m.add(x, x), -1.7),
    ):
        got, want = both(Lab(x, {}, body), isa)
        assert np.allclose(got, want, rtol=2 * EPS, atol=0)
    got, want = both(Lab(x, {}, lambda m, x: m.softcap(x, 30.0)), isa)
    assert np.allclose(got, want, rtol=12 * EPS, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("style", ["neox", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotated"), [(16, 16), (24, 16), (64, 64), (80, 32)])
def test_rope(isa: str, style: str, head_dim: int, rotated: int) -> None:
    x = draw(70, 3 * head_dim)
    frequency = tuple(10000.0 ** -(i / rotated) for i in range(0, rotated, 2))
    arrays = {"f": np.abs(draw(rotated // 2, seed=3)) + 1}
    for factors in (None, "f"):
        lab = Lab(
            x,
            arrays,
            lambda m, x, f=factors: m.rope(
                x, head_dim=head_dim, inv_freq=frequency, style=style, mscale=1.25, factors=f
            ),
        )
        got, want = both(lab, isa)
        # numpy takes the cosine of the same float32 angle in float32: 2 ulp of 1.
        assert np.abs(got - want).max() <= 8 * EPS * 1.25 * np.abs(x).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "k"), [(1, 5), (16, 16), (40, 64), (33, 100)])
def test_products_with_bias_and_residual(isa: str, n: int, k: int) -> None:
    x = draw(9, k)
    arrays = {"w": draw(n, k, seed=1), "v": draw(n, k, seed=2), "b": draw(n, seed=3)}

    def body(m, x):  # type: ignore[no-untyped-def]
        first = m.matmul(x, "w", "b")
        second = m.matmul(x, "v")
        return m.add(first, m.glu(first, second, "silu"))

    def residual(m, x):  # type: ignore[no-untyped-def]
        first = m.matmul(x, "w", "b")
        return m.add(first, m.matmul(x, "v"))

    size = np.abs(x) @ np.abs(arrays["w"]).T + np.abs(x) @ np.abs(arrays["v"]).T + 4
    for build in (body, residual):
        got, want = both(Lab(x, arrays, build), isa)
        assert np.all(np.abs(got - want) <= (k + 8) * EPS * size * (1 + size))


Shape = tuple[int, int, int, int, int, float]
"""Rows, heads, heads of keys, their size, window, cap of scores."""


def attention_lab(shape: Shape, *, tiny: bool = False) -> Lab:
    """q, k and v are slices of x; k and v are f16 numbers, so that storing them loses nothing.
    With ``tiny`` some rows have scales that f16 cannot hold."""
    rows, heads, kv_heads, head_dim, window, softcap = shape
    sizes = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    width = sum(sizes)
    x = draw(rows, width).astype(np.float16).astype(np.float32)
    if tiny:
        x[:: max(rows // 5, 1)] *= 1e-9
    starts = np.cumsum((0, *sizes))
    eye = np.eye(width, dtype=np.float32)
    arrays = {
        name: eye[a:b] for name, (a, b) in zip("qkv", itertools.pairwise(starts), strict=True)
    }
    return Lab(
        x,
        arrays,
        lambda m, x: m.attention(
            *(m.matmul(x, name) for name in "qkv"),
            layer=0,
            heads=heads,
            kv_heads=kv_heads,
            k_dim=head_dim,
            v_dim=head_dim,
            scale=head_dim**-0.5,
            window=window,
            softcap=softcap,
        ),
        [PagedKV(kv_heads, head_dim, head_dim, window)],
    )


@cache
def oracle(
    shape: Shape, cuts: tuple[int, ...], kv_type: KVType | None = None, tiny: bool = False
) -> Floats:
    """What the reference gives, once for all instruction sets."""
    return attention_lab(shape, tiny=tiny).run(ReferenceBackend(), cuts, kv_type)


ATTENTION: list[Shape] = [
    (1, 1, 1, 64, 0, 0.0),
    (70, 3, 1, 64, 0, 0.0),
    (130, 4, 2, 80, 0, 0.0),
    (65, 2, 2, 7, 0, 0.0),
    (200, 4, 1, 32, 50, 0.0),
    (129, 2, 1, 128, 0, 20.0),
    (90, 1, 1, 256, 33, 50.0),
    (700, 3, 1, 16, 0, 0.0),
    (1100, 2, 1, 16, 600, 0.0),
]


def at_most(shape: Shape, rows: int) -> Shape:
    return min(shape[0], rows), *shape[1:]


def attention_bound(head_dim: int, rows: int) -> float:
    # Scores of standard normal f16 vectors are below 6 sqrt(head_dim) before scaling; their error
    # moves a weight by as much, and weights sum to one over values below 6.
    score = (head_dim + 8) * EPS * 6 * 6
    return 6 * (2 * score + (rows + 16) * EPS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_attention(isa: str, shape: Shape) -> None:
    shape = at_most(shape, 300 if isa == "scalar" else 1100)
    rows, head_dim = shape[0], shape[3]
    cuts = tuple(range(512, rows, 512))
    got = attention_lab(shape).run(CpuBackend(threads=2, isa=isa), cuts)
    assert np.abs(got - oracle(shape, cuts)).max() <= attention_bound(head_dim, rows)


OTHERS = [t for t in CpuBackend.kv_types if t.name != "f16"]
APART = [choose_kv_type(name, KV_TYPES) for name in ("q8_0:int4", "int4:f16", "bf16:q8_0")]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", [*OTHERS, *APART], ids=lambda t: t.name)
@pytest.mark.parametrize("shape", every(3, ATTENTION), ids=str)
def test_attention_over_other_kv_types(isa: str, shape: Shape, kv_type: KVType) -> None:
    """Both round what they keep to the same numbers, so the bound is that of f16."""
    shape = at_most(shape, 130 if isa == "scalar" else 700)
    rows, head_dim = shape[0], shape[3]
    lab = attention_lab(shape, tiny=True)
    cuts = (min(rows - 1, 512),) if rows > 1 else ()
    got = lab.run(CpuBackend(threads=2, isa=isa), cuts, kv_type)
    want = oracle(shape, cuts, kv_type, tiny=True)
    assert np.abs(got - want).max() <= attention_bound(head_dim, rows)
    again = lab.run(
        CpuBackend(threads=1, isa=isa), sorted({rows // 3, rows // 2, *cuts} - {0}), kv_type
    )
    assert again.tobytes() == got.tobytes()


@pytest.mark.parametrize(
    "kv_type",
    [*CpuBackend.kv_types, *APART, choose_kv_type("f16,0=int4,2-4=q8_0:int4", KV_TYPES)],
    ids=lambda t: t.name,
)
def test_bytes_of_a_kv_block(kv_type: KVType) -> None:
    layers = [
        PagedKV(3, 64, 64),
        PagedKV(1, 7, 7, window=5),
        PagedKV(2, 80, 80),
        PagedKV(1, 40, 24),
        PagedKV(2, 96, 64, v_in_k=True),
        Recurrent(((3, 5), (2,))),
        Shared(0),
    ]
    groups = state_groups(layers)
    state = CpuBackend(threads=1).state_cache(layers, (3, 4, 5), kv_type)
    sizes = [kv_type.block_nbytes(layers, group) for group in groups]
    assert [state.block_nbytes(g) for g in range(3)] == sizes
    assert state.nbytes == 3 * sizes[0] + 4 * sizes[1] + 5 * sizes[2]
    # Reading 68 of 17 floats, whole cache lines.
    assert sizes[2] == 128

    def block(group: int, number: int) -> NDArray[np.uint8]:
        out = np.empty(sizes[group], np.uint8)
        state.read(group, number, out)
        return out

    for group, size in enumerate(sizes):
        data = draw(1, size).view(np.uint8).reshape(-1)[:size]
        state.write(group, 1, data)
        state.copy(group, 1, 2)
        assert not block(group, 0).any()
        assert block(group, 1).tobytes() == block(group, 2).tobytes() == data.tobytes()
    for group, number in [(0, 3), (0, -1), (1, 4), (2, 5), (3, 0), (-1, 0)]:
        with pytest.raises(IndexError, match="there is no block"):
            state.copy(group, number, 0)
    with pytest.raises(ValueError, match="bytes given"):
        state.read(0, 0, np.empty(sizes[0] - 1, np.uint8))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_attention_bits_do_not_depend_on_the_cut(isa: str, shape: Shape) -> None:
    shape = at_most(shape, 130 if isa == "scalar" else 1100)
    rows = shape[0]
    lab = attention_lab(shape)
    whole = lab.run(CpuBackend(threads=1, isa=isa), range(512, rows, 512))
    # Single rows at the end go through the split path, where there are several splits.
    for threads, cuts in [
        (2, sorted({1, rows // 3, rows // 2, max(rows - 3, 1), max(rows - 1, 1)} - {0, rows})),
        (4, [*range(200, rows, 200)]),
    ]:
        steps = sorted({*cuts, *range(512, rows, 512)})
        got = lab.run(CpuBackend(threads=threads, isa=isa), steps)
        assert got.tobytes() == whole.tobytes()
