"""Residuals of several streams and functions of whole rows, natively against the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.reference import ReferenceBackend
from support.small_programs import Floats, Lab

EPS = 2.0**-24
ISAS = available_isas()


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both(lab: Lab, isa: str) -> tuple[Floats, Floats]:
    got = lab.run(CpuBackend(threads=2, isa=isa))
    assert np.array_equal(lab.run(CpuBackend(threads=1, isa=isa), cuts=[1]), got)
    return got, lab.run(ReferenceBackend())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("streams", "made", "width"), [(1, 1, 1), (4, 4, 16), (4, 1, 33), (3, 5, 70)]
)
def test_sums_of_streams(isa: str, streams: int, made: int, width: int) -> None:
    first, second = streams * width, made * streams
    x = draw(5, first + second)

    def body(m, x):  # type: ignore[no-untyped-def]
        whole = first + second
        parts = m.columns(x, head_dim=whole, start=0, width=first)
        weights = m.columns(x, head_dim=whole, start=first, width=second)
        return m.mix(parts, weights, streams)

    lab = Lab(x, {}, body)
    got, want = both(lab, isa)
    parts = x[:, :first].reshape(5, streams, width)
    weights = x[:, first:].reshape(5, made, streams)
    for j in range(made):
        plain = sum(weights[:, j, i, None] * parts[:, i] for i in range(streams))
        assert np.allclose(want[:, j * width : (j + 1) * width], plain, atol=16 * EPS * streams)
    bound = np.einsum("tji,tiw->tjw", abs(weights), abs(parts)).reshape(got.shape)
    assert np.all(np.abs(got - want) <= (streams + 1) * EPS * bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("streams", "width"), [(1, 1), (3, 16), (2, 37), (1, 1100)])
def test_streams_as_large_as_another(isa: str, streams: int, width: int) -> None:
    x = draw(4, (streams + 1) * width)
    x[2, width:] *= 1e-4

    def body(m, x, least=1e-5):  # type: ignore[no-untyped-def]
        whole = (streams + 1) * width
        like = m.columns(x, head_dim=whole, start=0, width=width)
        rest = m.columns(x, head_dim=whole, start=width, width=streams * width)
        return m.match_rms(rest, like, least)

    got, want = both(Lab(x, {}, body), isa)
    assert np.allclose(got, want, rtol=(width + 16) * EPS, atol=0)
    roots = np.sqrt(np.square(want.reshape(4, streams, width)).mean(-1))
    wanted = np.sqrt(np.square(x[:, :width]).mean(-1, keepdims=True))
    assert np.allclose(np.delete(roots, 2, 0), np.delete(wanted, 2, 0), rtol=1e-5)
    # What is smaller than the least keeps what it lacks.
    assert np.all(roots[2] < 0.1 * wanted[2])
    free = Lab(x, {}, lambda m, x: body(m, x, 0.0)).run(ReferenceBackend())
    assert np.allclose(np.sqrt(np.square(free.reshape(4, streams, width)).mean(-1)), wanted, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [2, 16, 51, 1200])
@pytest.mark.parametrize("spare", [0, 1])
def test_what_is_above_some_deviations(isa: str, width: int, spare: int) -> None:
    x = draw(4, width) + np.float32(3)
    got, want = both(Lab(x, {}, lambda m, x: m.cutoff(x, 0.5, spare)), isa)
    bar = x.mean(1, keepdims=True) + 0.5 * x.std(1, keepdims=True, ddof=spare)
    assert np.allclose(want, np.maximum(x - bar, 0), atol=1e-5)
    assert np.abs(got - want).max() <= (width + 16) * EPS * 8
    assert (want > 0).any()
    assert (want == 0).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("streams", [1, 2, 4, 7])
def test_matrices_that_mix_streams(isa: str, streams: int) -> None:
    x = draw(5, streams * streams) * np.float32(3)
    got, want = both(Lab(x, {}, lambda m, x: m.sinkhorn(x, streams, 20, 1e-6)), isa)
    assert np.abs(got - want).max() <= 20 * 8 * EPS
    turned = want.reshape(5, streams, streams)
    # Columns come last and are exact; rows are what twenty times leave.
    assert np.allclose(turned.sum(2), 1, atol=1e-4)
    assert np.allclose(turned.sum(1), 1, atol=0.05)
    once = Lab(x, {}, lambda m, x: m.sinkhorn(x, streams, 1, 1e-6)).run(ReferenceBackend())
    powers = np.exp(x.reshape(5, streams, streams))
    plain = powers / powers.sum(2, keepdims=True) + 1e-6
    plain = (plain / (plain.sum(1, keepdims=True) + 1e-6)).transpose(0, 2, 1)
    assert np.allclose(once.reshape(plain.shape), plain, atol=1e-5)
