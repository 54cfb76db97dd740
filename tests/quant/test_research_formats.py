"""What research formats and criteria promise, each by its own test."""

from __future__ import annotations

import numpy as np
import pytest

from strata.quant import dynamic_tree, int8_outliers, nf4, pruning
from strata.quant.pruning import Pattern
from support.foreign_checkpoints import NF4 as PUBLISHED

RNG = np.random.default_rng(17)


def test_nf4_levels_are_the_published_ones() -> None:
    assert np.abs(nf4.levels() - np.array(PUBLISHED, np.float32)).max() < 1e-6
    numbers = np.array(PUBLISHED, np.float32)
    assert np.array_equal(dynamic_tree.nearest(nf4.levels(), numbers), np.arange(16))


def test_nf4_takes_4_127_bits_and_is_better_than_even_steps() -> None:
    values = RNG.standard_normal(1 << 18).astype(np.float32)
    kept = nf4.encode(values)
    assert kept.bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))
    again = nf4.decode(kept)
    blocks = values.reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    steps = (np.rint(blocks / largest * 7) * largest / 7).reshape(-1)
    fp4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
    table = np.sort(np.concatenate([-fp4[1:], fp4])).astype(np.float32)
    by_fp4 = (table[dynamic_tree.nearest(table, blocks / largest)] * largest).reshape(-1)
    losses = [float(((a - values) ** 2).mean()) for a in (again, steps, by_fp4)]
    assert losses[0] < min(losses[1:])


def test_nf4_of_short_and_of_empty_blocks() -> None:
    values = np.concatenate([np.zeros(64), RNG.standard_normal(13)]).astype(np.float32)
    again = nf4.decode(nf4.encode(values))
    assert again.shape == values.shape
    assert np.array_equal(again[:64], np.zeros(64, np.float32))


def test_the_dynamic_tree_has_256_rising_levels_and_keeps_them() -> None:
    table = dynamic_tree.levels()
    assert table.shape == (256,)
    assert (np.diff(table) > 0).all()
    assert {0.0, 1.0} <= set(table.tolist())
    # The smallest: six zeros before the one, of which no bits are left.
    assert table[table > 0].min() == pytest.approx(0.55e-6)
    codes, scales = dynamic_tree.encode(table * 3)
    assert np.array_equal(codes, np.arange(256))
    assert np.array_equal(dynamic_tree.decode(codes, scales), table * np.float32(3))
    values = (10.0 ** RNG.uniform(-5, 0, 5000)).astype(np.float32)
    codes, scales = dynamic_tree.encode(values)
    small = np.abs(dynamic_tree.decode(codes, scales) / values - 1)
    # Even steps of 1 / 127 lose all of what is below 1 / 254.
    assert np.median(small[values < 1 / 254]) < 0.1


def test_outliers_kept_apart_lose_less() -> None:
    x = RNG.standard_normal((32, 256)).astype(np.float32)
    w = RNG.standard_normal((64, 256)).astype(np.float32)
    planted = x.copy()
    planted[:, [3, 77]] *= 60
    exact = planted.astype(np.float64) @ w.T.astype(np.float64)
    plain = np.abs(int8_outliers.product(planted, w) - exact).mean()
    apart = np.abs(int8_outliers.decomposed_product(planted, w) - exact).mean()
    assert apart * 10 < plain
    assert np.flatnonzero(int8_outliers.outliers(planted)).tolist() == [3, 77]
    none = np.clip(x, -5, 5)
    assert np.array_equal(int8_outliers.decomposed_product(none, w), int8_outliers.product(none, w))
    everything = int8_outliers.decomposed_product(planted, w, threshold=0)
    assert np.array_equal(everything, planted @ w.T)


def _layer() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, inputs that depend on each other, and their Hessian."""
    mixing = RNG.standard_normal((48, 48)) * (RNG.random(48) * 3 + 0.1)
    inputs = RNG.standard_normal((400, 48)) @ mixing
    return RNG.standard_normal((24, 48)), inputs, inputs.T @ inputs


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(24, 48), Pattern(8, 16)])
def test_masks_keep_what_they_say_and_repairing_loses_least(pattern: Pattern) -> None:
    weights, inputs, hessian = _layer()

    def loss(kept: np.ndarray) -> float:
        return float(np.linalg.norm(inputs @ (kept - weights).T))

    norms = np.sqrt(np.diag(hessian))
    masks = [pruning.magnitude(weights, pattern), pruning.wanda(weights, norms, pattern)]
    repaired, mask = pruning.sparse_gpt(weights, hessian, pattern)
    for each in (*masks, mask):
        assert (each.reshape(24, -1, pattern.of).sum(axis=2) == pattern.keep).all()
    assert np.array_equal(repaired != 0, mask)
    by_magnitude, by_wanda = (loss(np.where(m, weights, 0)) for m in masks)
    assert loss(repaired) < by_wanda < by_magnitude


def test_of_inputs_that_are_all_alike_the_largest_weights_stay_as_they_are() -> None:
    weights, _, _ = _layer()
    kept, mask = pruning.sparse_gpt(weights, np.eye(48), Pattern(2, 4))
    assert np.array_equal(mask, pruning.magnitude(weights, Pattern(2, 4)))
    assert np.allclose(kept, np.where(mask, weights, 0), atol=1e-12)
    assert np.array_equal(mask, pruning.wanda(weights, np.ones(48), Pattern(2, 4)))
