"""Gates, scales, biases, clamps, temperatures, norms without weights, and what attention adds to
scores, natively against the oracle."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import KV_TYPES, KVType
from strata.backends.reference import ReferenceBackend
from strata.program import PagedKV, ProgramError
from strata.program.ops.attention import alibi_slopes
from support.sampling import every
from support.small_programs import Floats, Lab

EPS = 2.0**-24
ISAS = available_isas()


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def both(lab: Lab, isa: str) -> tuple[Floats, Floats]:
    return lab.run(CpuBackend(threads=2, isa=isa)), lab.run(ReferenceBackend())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("width", "given"), [(1, 1), (48, 1), (48, 3), (51, 3), (51, 51), (1200, 2)]
)
def test_products_with_gates_and_scales(isa: str, width: int, given: int) -> None:
    x = draw(3, width)
    w = draw(given, width, seed=1)
    arrays = {"w": w, "s": draw(given, seed=2), "square": draw(given, 1, seed=3)}
    arrays["gain"] = np.abs(arrays["s"]) + 1
    for body in (
        lambda m, x: m.mul(x, m.matmul(x, "w")),
        lambda m, x: m.scale_by(x, "s"),
        lambda m, x: m.scale_by(x, "square"),
        lambda m, x: m.scale_by(x, "gain", inverse=True),
    ):
        got, want = both(Lab(x, arrays, body), isa)
        gate = np.repeat(np.abs(x) @ np.abs(w).T + 4, width // given, axis=1)
        assert np.all(np.abs(got - want) <= (width + 4) * EPS * np.abs(x) * gate)
    # The scales of neighbouring columns are one number, and no column is left out.
    got, _ = both(Lab(x, arrays, lambda m, x: m.scale_by(x, "s")), isa)
    assert np.array_equal(got, x * np.repeat(arrays["s"], width // given))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 17, 64, 1100])
def test_biases_and_clamps(isa: str, width: int) -> None:
    x = draw(3, width, scale=3)
    arrays = {"b": draw(width, seed=1)}
    for body, want in (
        (lambda m, x: m.shift(x, "b"), x + arrays["b"]),
        (lambda m, x: m.clamp(x, -1.5, 2.5), np.clip(x, np.float32(-1.5), np.float32(2.5))),
    ):
        for got in both(Lab(x, arrays, body), isa):
            assert np.array_equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
def test_xielu(isa: str) -> None:
    x = draw(4, 100, scale=3)
    x[0, :4] = [-100, 0, 100, -1e-8]
    got, want = both(Lab(x, {}, lambda m, x: m.xielu(x, 1.3, 0.8, 0.5, -1e-6)), isa)
    # e^x - 1 - x loses what the exponential is off by, in absolute terms.
    assert np.all(np.abs(got - want) <= 16 * EPS * (1 + np.abs(x) + x * x))


@pytest.mark.parametrize("isa", ISAS)
def test_temperature_grows_with_the_position(isa: str) -> None:
    x = draw(40, 20)
    lab = Lab(x, {}, lambda m, x: m.position_scale(x, 8, 0.1, 1.0))
    got, want = both(lab, isa)
    steps = np.floor((np.arange(40) + 1) / 8)
    assert np.allclose(want, x * (1 + 0.1 * np.log(steps + 1))[:, None], rtol=4 * EPS, atol=0)
    assert np.allclose(got, want, rtol=4 * EPS, atol=0)
    assert np.array_equal(lab.run(CpuBackend(threads=1, isa=isa), cuts=[7, 8]), got)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("width", "group"), [(48, 48), (48, 16), (51, 17)])
def test_norms_without_weights(isa: str, width: int, group: int) -> None:
    x = draw(3, width)
    for body in (
        lambda m, x: m.rms_norm(x, None, 1e-5, group),
        lambda m, x: m.layer_norm(x, None, None, 1e-5, group),
    ):
        got, want = both(Lab(x, {}, body), isa)
        assert np.abs(got - want).max() <= (2 * group + 16) * EPS * 8
        assert np.allclose(np.square(want.reshape(3, -1, group)).mean(-1), 1, atol=1e-3)


def attention(rows: int = 700, **more: object) -> Lab:
    """q, k and v are parts of x; k and v are f16 numbers, so that storing them loses nothing."""
    heads, kv_heads, dim = 6, 2, 24
    q, k = heads * dim, kv_heads * dim
    x = np.concatenate([draw(rows, q), draw(rows, 2 * k, seed=1).astype(np.float16)], axis=1)
    eye = np.eye(q + 2 * k, dtype=np.float32)
    arrays = {"q": eye[:q], "k": eye[q : q + k], "v": eye[q + k :], "s": draw(heads, seed=5)}
    arrays["p"] = np.roll(eye[:q], 1, axis=0)

    def body(m, x):  # type: ignore[no-untyped-def]
        parts = [m.matmul(x, name) for name in "qkv"]
        sizes = {"heads": heads, "kv_heads": kv_heads, "k_dim": dim, "v_dim": dim}
        if "beginning" in more:
            sizes["q_beginning"] = m.matmul(x, "p")
        return m.attention(*parts, layer=0, scale=dim**-0.5, **sizes, **more)

    return Lab(x.astype(np.float32), arrays, body, [PagedKV(kv_heads, dim, dim)])


@cache
def oracle(kv_type: KVType | None = None, **more: object) -> Floats:
    """What the reference gives, once for all instruction sets."""
    return attention(**more).run(ReferenceBackend(), (350,), kv_type)


# Plain C++ takes the longest.
@pytest.mark.parametrize(
    "isa", [pytest.param(i, marks=pytest.mark.slow if i == "scalar" else ()) for i in ISAS]
)
@pytest.mark.parametrize("kv_type", every(2, KV_TYPES), ids=lambda t: t.name)
@pytest.mark.parametrize(
    "more",
    [
        {"alibi": 8.0},
        {"sinks": "s"},
        {"alibi": 4.0, "sinks": "s", "window": 100},
        {"window": 100, "chunked": True},
        {"window": 100, "beginning": 70, "alibi": 8.0},
        {"window": 90, "beginning": 500, "sinks": "s"},
    ],
    ids=str,
)
def test_scores_with_slopes_and_sinks(isa: str, kv_type: KVType, more: dict[str, object]) -> None:
    lab = attention(**more)
    got = lab.run(CpuBackend(threads=2, isa=isa), (350,), kv_type)
    want = oracle(kv_type, **more)
    # Scores are sums of 24 products near 1, off by some eps each; so are weights, relatively.
    assert np.abs(got - want).max() <= 400 * EPS
    plain = oracle(kv_type, window=more.get("window", 0))
    assert np.abs(want - plain).max() > 0.1
    # Whatever the cut, and the number of threads that splits are shared among: the same bits.
    for threads, cuts in ((1, (1, 2, 400, 690)), (3, (400, 699))):
        again = lab.run(CpuBackend(threads=threads, isa=isa), cuts, kv_type)
        assert np.array_equal(again, got)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_see_what_comes_after_them(isa: str) -> None:
    got, want = both(attention(400, causal=False), isa)
    assert np.abs(got - want).max() <= 400 * EPS
    causal = attention(400).run(ReferenceBackend())
    assert np.allclose(want[-1], causal[-1], atol=400 * EPS)
    assert np.abs(want[:300] - causal[:300]).max() > 0.1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", every(2, [1, 5, 64, 130, 1000]))
def test_windows_look_both_ways_where_rows_see_what_comes_after(isa: str, window: int) -> None:
    lab = attention(400, causal=False, window=window)
    got, want = both(lab, isa)
    assert np.abs(got - want).max() <= 400 * EPS
    # A row that ends the text sees what it does with a window that looks back; one in the middle
    # sees as much after it, and nothing that comes later.
    back = attention(400, window=window).run(ReferenceBackend())
    assert np.allclose(want[-1], back[-1], atol=400 * EPS)
    for missing, same in ((0, True), (1, window > 200)):
        rows = min(400, 200 + window - missing)
        if rows > 200:
            part = attention(rows, causal=False, window=window).run(ReferenceBackend())
            assert np.allclose(part[200], want[200], atol=400 * EPS) == same
    with pytest.raises(ProgramError, match="chunks"):
        attention(90, causal=False, window=30, chunked=True)


@pytest.mark.parametrize("isa", ISAS)
def test_a_beginning_within_the_window_changes_no_bit(isa: str) -> None:
    plain, kept = attention(), attention(window=500, beginning=100)
    want = plain.run(CpuBackend(threads=2, isa=isa), (350,))
    got = kept.run(CpuBackend(threads=2, isa=isa), (350,))
    assert np.array_equal(got[:600], want[:600])
    assert not np.isclose(got[600:], want[600:], rtol=0, atol=1e-4).all(axis=1).any()
    with pytest.raises(ProgramError, match="beside a window"):
        attention(90, beginning=4)


def test_rows_see_their_own_chunk() -> None:
    whole = attention(90, window=30, chunked=True).run(ReferenceBackend())
    alone = attention(90).run(ReferenceBackend())
    assert np.allclose(whole[:30], alone[:30], atol=400 * EPS)
    # The first row of a chunk sees itself alone: its value is what comes out.
    x = attention(90).x
    values = x[60, -48:].reshape(2, 24)
    assert np.allclose(whole[60].reshape(2, 3, 24), values[:, None], atol=400 * EPS)
    with pytest.raises(ProgramError, match="chunks"):
        attention(90, chunked=True)


def test_slopes_of_a_number_of_heads_that_is_no_power_of_two() -> None:
    assert alibi_slopes(8, 8.0) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6, 8.0) == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
