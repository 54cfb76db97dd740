"""Figures of tokens by their definitions, and how sure they are."""

from __future__ import annotations

import itertools
from math import exp, log

import numpy as np
import pytest

from strata.decode import LogitsError
from strata.report.quality.chart import Point, drawing, front, svg
from strata.report.quality.figures import TokenFigures, pareto, sign_test, summarize

VOCABULARY = 11


def rows(seed: int, count: int, scale: float = 2.0) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(seed))
    return (scale * generator.standard_normal((count, VOCABULARY))).astype(np.float32)


def probabilities(row: np.ndarray) -> list[float]:
    weights = [exp(float(x) - float(row.max())) for x in row]
    return [w / sum(weights) for w in weights]


def filled(windows: int, each: int, noise: float = 0.3) -> tuple[TokenFigures, list[list[float]]]:
    base, other = rows(1, windows * each), rows(2, windows * each, noise)
    tokens = np.random.Generator(np.random.PCG64(3)).integers(0, VOCABULARY, windows * each)
    figures = TokenFigures(windows, each, against=True)
    naive = []
    for b, o, token in zip(base, other, tokens.tolist(), strict=True):
        row = b + o
        if token % 3 == 0:
            # A token that the base excludes.
            b = b.copy()
            b[(token + 1) % VOCABULARY] = -np.inf
        figures.add(row, token, b)
        p, q = probabilities(b), probabilities(row)
        kl = sum(x * log(x / y) for x, y in zip(p, q, strict=True) if x)
        same = p.index(max(p)) == q.index(max(q))
        naive.append([-log(q[token]), -log(p[token]), kl, float(same), q[token] - p[token]])
    return figures, naive


def test_figures_are_those_of_their_definitions() -> None:
    figures, naive = filled(5, 7)
    nll, base, kl, same, change = np.array(naive).T
    found = summarize(figures, 8)
    assert found.kl is not None
    assert found.log_ratio is not None
    assert found.same_top is not None
    assert found.p_change is not None
    assert found.p_change_rms is not None
    assert found.kl_quantiles is not None
    assert found.perplexity.value == pytest.approx(exp(nll.mean()), rel=1e-6)
    assert found.log_ratio.value == pytest.approx((nll - base).mean(), rel=1e-6)
    assert found.kl.value == pytest.approx(kl.mean(), rel=1e-6)
    assert found.kl_largest == pytest.approx(kl.max(), rel=1e-6)
    assert found.same_top.value == pytest.approx(same.mean())
    assert found.p_change.value == pytest.approx(change.mean(), rel=1e-6)
    assert found.p_change_rms.value == pytest.approx((change**2).mean() ** 0.5, rel=1e-6)
    for name, part in (("median", 0.5), ("p99", 0.99), ("p99_9", 0.999)):
        # Between its neighbours, as llama.cpp's tool takes a percentile.
        ranked, at = sorted(kl), part * (len(kl) - 1)
        low, rest = int(at), at - int(at)
        wanted = (1 - rest) * ranked[low] + rest * ranked[min(low + 1, len(kl) - 1)]
        assert found.kl_quantiles[name].value == pytest.approx(wanted, rel=1e-6)
        assert found.kl_quantiles[name].low <= wanted <= found.kl_quantiles[name].high
    assert [(a, b) for a, b, _, _ in found.positions] == [(8 + i, 8 + i) for i in range(7)]
    by_position = nll.reshape(5, 7).mean(axis=0)
    assert [x for _, _, x, _ in found.positions] == pytest.approx(by_position, rel=1e-6)


def test_a_model_beside_itself_lost_nothing() -> None:
    figures = TokenFigures(3, 4, against=True)
    for row in rows(5, 12):
        figures.add(row, 2, row)
    found = summarize(figures, 0)
    assert found.kl is not None
    assert found.same_top is not None
    assert (found.kl.value, found.same_top.value, found.p_value) == (0.0, 1.0, 1.0)


def test_incomplete_windows_do_not_count() -> None:
    figures = TokenFigures(3, 4, against=False)
    for row in rows(5, 7):
        figures.add(row, 2)
    assert figures.complete == 1
    assert summarize(figures, 0).tokens == 4


def test_what_is_no_number_is_an_error() -> None:
    row = rows(1, 1)[0]
    broken = row.copy()
    broken[3] = np.nan
    with pytest.raises(LogitsError):
        TokenFigures(1, 1, against=False).add(broken, 1)
    excluded = row.copy()
    excluded[3] = -np.inf
    with pytest.raises(LogitsError):
        TokenFigures(1, 1, against=True).add(excluded, 1, row)


def test_the_sign_test_is_that_over_all_signs() -> None:
    apart = np.array([0.3, -0.1, 0.25, 0.4, 0.05])
    sums = [abs(sum(s * x for s, x in zip(signs, apart, strict=True)))
            for signs in itertools.product((1, -1), repeat=5)]  # fmt: skip
    wanted = sum(s >= abs(apart.sum()) - 1e-12 for s in sums) / 32
    assert sign_test(apart) == pytest.approx(wanted)
    assert sign_test(apart[:1]) is None
    many = np.random.Generator(np.random.PCG64(7)).standard_normal(200)
    undecided = sign_test(many - many.mean())
    assert undecided is not None
    assert undecided > 0.9
    assert sign_test(np.abs(many)) == pytest.approx(1 / 20_001)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Windows whose tokens depend on each other: intervals that took tokens for independent would
    hold it far less often."""
    generator = np.random.Generator(np.random.PCG64(11))
    held = 0
    for _ in range(200):
        figures = TokenFigures(16, 8, against=False)
        figures.done = 128
        values = 3 + generator.standard_normal((16, 1)) + 0.1 * generator.standard_normal((16, 8))
        figures._nll[:] = values.reshape(-1)
        found = summarize(figures, 0).perplexity
        held += log(found.low) <= 3 <= log(found.high)
    # 190 are wanted; 3 standard deviations of a binomial are 9, and percentiles of 16 cost some.
    assert 174 <= held <= 199


def test_the_front_is_what_none_is_better_than() -> None:
    generator = np.random.Generator(np.random.PCG64(13))
    for _ in range(20):
        points = [(float(a), float(b)) for a, b in generator.integers(0, 6, (9, 2))]
        wanted = [
            not any(
                (q[0] <= p[0] and q[1] < p[1]) or (q[0] < p[0] and q[1] <= p[1]) for q in points
            )
            for p in points
        ]
        assert pareto(points) == wanted


def test_pictures_show_every_model() -> None:
    from xml.etree import ElementTree

    points = [
        Point("small & <bad>", 50_000_000, 0.4, 0.3, 0.5),
        Point("worse", 90_000_000, 0.5, 0.5, 0.5),
        Point("large", 150_000_000, 0.001, 0.0, 0.002),
    ]
    assert [p.name for p in front(points)] == ["small & <bad>", "large"]
    root = ElementTree.fromstring(svg(points, "loss", "A < B"))
    texts = {e.text for e in root.iter() if e.tag.endswith("text")}
    assert {p.name for p in points} <= texts
    assert len([e for e in root.iter() if e.tag.endswith("circle")]) == 3
    lines = drawing(points, "loss").split("\n")
    assert lines[-3:] == ["A small & <bad>", "b worse", "C large"]
    assert all(len(line) <= 80 for line in lines)
    assert ElementTree.fromstring(svg(points[:1], "loss", "one")) is not None
