"""Recurrences with a matrix of state a head: native against the oracle, and bits that depend on the
sequence alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.reference import ReferenceBackend
from strata.program import Recurrent
from support.mixed_sequences import run_mixed
from support.small_programs import Floats, Lab

ISAS = available_isas()
EPS = 2.0**-24


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """An Op over columns of x of these widths; those of ``unit`` are made to lie in 0 .. 1 or to
    have length 1 a head, as models make them."""

    kind: str
    widths: tuple[int, ...]
    kept: tuple[int, ...]
    body: Callable[[Any, list[str]], str]
    arrays: dict[str, Floats]

    def lab(self, rows: int) -> Lab:
        starts = np.cumsum((0, *self.widths)).tolist()
        width = starts[-1]

        def body(m: Any, x: str) -> str:
            parts = [
                m.columns(x, head_dim=width, start=a, width=b - a)
                for a, b in itertools.pairwise(starts)
            ]
            return self.body(m, parts)

        return Lab(draw(rows, width), self.arrays, body, [Recurrent((self.kept,))])


def ssm(heads: int, dim: int, groups: int, states: int) -> Case:
    widths = (heads * dim, heads, groups * states, groups * states)
    arrays = {"a": -np.abs(draw(heads, seed=1)), "d": draw(heads, seed=2)}

    def body(m: Any, xs: list[str]) -> str:
        out: str = m.ssm_scan(*xs, a="a", d="d", layer=0, groups=groups, states=states)
        return out

    return Case("ssm", widths, (heads, states, dim), body, arrays)


def ssm_channels(width: int, states: int) -> Case:
    arrays = {"a": -np.abs(draw(width, states, seed=1)), "d": draw(width, seed=2)}

    def body(m: Any, xs: list[str]) -> str:
        out: str = m.ssm_scan(*xs, a="a", d="d", layer=0, groups=1, states=states)
        return out

    return Case("mamba1", (width, width, states, states), (width, states, 1), body, arrays)


def delta(heads: int, key_heads: int, k: int, v: int, *, tiled: bool, by_key: bool) -> Case:
    decay = heads * k if by_key else heads
    widths = (key_heads * k, key_heads * k, heads * v, decay, heads)
    arrays = {"a": -np.abs(draw(heads, seed=1))}

    def body(m: Any, xs: list[str]) -> str:
        q, keys, values, decays, beta = xs
        out: str = m.gated_delta(
            m.l2_norm(q, k, 1e-6, k**-0.5),
            m.l2_norm(keys, k, 1e-6),
            values,
            m.decay(decays, "a"),
            m.activation(beta, "sigmoid"),
            layer=0,
            heads=heads,
            key_heads=key_heads,
            tiled=tiled,
        )
        return out

    return Case("delta", widths, (heads, k, v), body, arrays)


def linear(heads: int, k: int, v: int, *, by_key: bool) -> Case:
    """With decays between 0 and 1, of each row or always the same."""
    widths = (heads * k, heads * k, heads * v, *((heads * k,) if by_key else ()))
    fixed = () if by_key else np.linspace(0.2, 0.95, heads).tolist()

    def body(m: Any, xs: list[str]) -> str:
        q, keys, values, *decay = xs
        given = [m.activation(x, "sigmoid") for x in decay]
        out: str = m.linear_attention(
            m.l2_norm(q, k, 1e-6), keys, values, *given, layer=0, heads=heads, decays=fixed
        )
        return out

    return Case("linear", widths, (heads, k, v), body, {})


def wkv6(heads: int, dim: int) -> Case:
    arrays = {"u": draw(heads * dim, seed=1)}

    def body(m: Any, xs: list[str]) -> str:
        out: str = m.wkv6(*xs, u="u", layer=0, heads=heads)
        return out

    return Case("wkv6", (heads * dim,) * 4, (heads, dim, dim), body, arrays)


def wkv7(heads: int, dim: int) -> Case:
    arrays = {"a": -np.abs(draw(heads, seed=1))}

    def body(m: Any, xs: list[str]) -> str:
        r, w, k, v, a = xs
        # What is removed lies along a unit vector, so that the state does not grow.
        unit = m.l2_norm(a, dim, 1e-6)
        out: str = m.wkv7(
            *(r, m.decay(w, "a"), k, v, unit, m.scale(unit, -0.5)), layer=0, heads=heads
        )
        return out

    return Case("wkv7", (heads * dim,) * 5, (heads, dim, dim), body, arrays)


CASES = [
    ssm(4, 16, 2, 24),
    ssm(3, 5, 1, 7),
    ssm(2, 40, 2, 128),
    ssm_channels(40, 16),
    ssm_channels(33, 5),
    delta(4, 2, 16, 32, tiled=False, by_key=False),
    delta(4, 2, 24, 20, tiled=True, by_key=False),
    delta(3, 3, 9, 17, tiled=False, by_key=True),
    linear(3, 16, 24, by_key=False),
    linear(2, 9, 17, by_key=True),
    wkv6(2, 16),
    wkv6(3, 9),
    wkv7(2, 16),
    wkv7(3, 9),
]
IDS = [f"{case.kind}-{'x'.join(map(str, case.kept))}" for case in CASES]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_near_the_oracle(case: Case, isa: str) -> None:
    rows = 25
    lab = case.lab(rows)
    want = lab.run(ReferenceBackend())
    got = lab.run(CpuBackend(threads=2, isa=isa))
    # Every row adds sums of as many products as the state has rows, each with a rounding or two and
    # with decays and gates a few ulps off; no recurrence here makes what was off before grow.
    bound = 16 * rows * (case.kept[1] + 8) * EPS * np.abs(want).max()
    assert np.isfinite(want).all()
    assert np.abs(got - want).max() <= bound
    cuts = sorted({1, rows // 2, rows - 1})
    again = lab.run(ReferenceBackend(), cuts)
    assert np.abs(again - want).max() <= bound


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_bits_depend_on_the_sequence_alone(case: Case) -> None:
    """Random cuts of sequences that share steps, on every instruction set, any number of
    threads."""
    rng = np.random.default_rng(0)
    lab = case.lab(60)
    whole = {isa: lab.run(CpuBackend(1, isa)) for isa in ISAS}
    # All but scalar fuse.
    assert len({whole[isa].tobytes() for isa in ISAS if isa != "scalar"}) <= 1
    for isa, threads in itertools.product(ISAS, (1, 3, 4)):
        for got in run_mixed(lab, CpuBackend(threads, isa), rng):
            assert got.tobytes() == whole[isa].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("groups", "group"), [(1, 7), (3, 16), (2, 100)])
def test_functions_of_groups(isa: str, groups: int, group: int) -> None:
    width = groups * group
    arrays = {"w": draw(groups, group, seed=1), "a": -np.abs(draw(groups, seed=2))}
    bodies: list[Callable[[Any, str], str]] = [
        lambda m, x: m.grouped_rms_norm(x, "w", groups, 1e-5),
        lambda m, x: m.l2_norm(x, group, 1e-6, 0.5),
        lambda m, x: m.decay(x, "a"),
        lambda m, x: m.mul(x, m.group_sum(x, group)),
        lambda m, x: m.softmax(x, group),
        lambda m, x: m.mul(x, m.activation(x, "sigmoid")),
    ]
    for body in bodies:
        lab = Lab(draw(9, width), arrays, body)
        want = lab.run(ReferenceBackend())
        got = lab.run(CpuBackend(threads=2, isa=isa))
        assert np.abs(got - want).max() <= (group + 16) * EPS * np.abs(want).max()
