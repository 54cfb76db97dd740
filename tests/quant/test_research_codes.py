"""What formats that are studied promise: SpQR, SqueezeLLM, AQLM, trellises, MR-GPTQ, ARCQuant."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.quant import (
    additive,
    augmented,
    kmeans,
    learned_rotation,
    micro_rotation,
    spqr,
    trellis,
)
from strata.quant.propagation import inverse_factor, output_error, propagate

Matrix = NDArray[np.float64]


def layer(n: int, k: int, seed: int = 3, *, tail: float = 0.0) -> tuple[Matrix, Matrix]:
    """Weights [n, k] and the second moments [k, k] of inputs that go together and of which some
    are large. With ``tail`` that part of the weights is six times as large."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n, k)) * 0.05
    weights[rng.random((n, k)) < tail] *= 6
    x = rng.standard_normal((4 * k, k)) @ (np.eye(k) + 0.4 * rng.standard_normal((k, k)) / k**0.5)
    x *= np.exp(0.5 * rng.standard_normal(k))
    return weights, x.T @ x


def grouped(weights: Matrix, hessian: Matrix, bits: int, group: int, damping: float) -> Matrix:
    """GPTQ with even steps, a scale and a least value (as halves) for each group of a row."""
    scale, low = np.ones(len(weights)), np.zeros(len(weights))

    def rounded(j: int, kept: Matrix) -> Matrix:
        nonlocal scale, low
        if j % group == 0:
            part = kept[:, j : j + group]
            low = part.min(axis=1).astype(np.float16).astype(np.float64)
            step = (part.max(axis=1) - low) / (2**bits - 1)
            scale = step.astype(np.float16).astype(np.float64)
        return (low + scale * np.rint((kept[:, j] - low) / scale).clip(0, 2**bits - 1))[:, None]

    return propagate(weights, inverse_factor(hessian, damping), rounded)


def test_columns_together_are_columns_one_by_one_where_nothing_is_lost_within() -> None:
    weights, hessian = layer(4, 24)
    upper = inverse_factor(hessian)
    held = hessian + 0.01 * np.diag(hessian).mean() * np.eye(24)
    assert np.allclose(upper.T @ upper @ held, np.eye(24))
    assert np.array_equal(np.tril(upper, -1), np.zeros((24, 24)))

    def lose_the_first_of_eight(j: int, kept: Matrix) -> Matrix:
        found = kept[:, j : j + 8].copy()
        found[:, 7] = 0
        return found

    def lose_each(j: int, kept: Matrix) -> Matrix:
        return kept[:, j : j + 1] * (j % 8 != 7)

    together = propagate(weights, upper, lose_the_first_of_eight, 8)
    assert np.allclose(together, propagate(weights, upper, lose_each))


def test_spqr_decodes_what_it_meant_and_loses_less_than_gptq_at_its_bits() -> None:
    weights, hessian = layer(128, 256, tail=0.01)
    kept = spqr.encode(weights, hessian, 3, 0.007)
    again = spqr.decode(kept).astype(np.float64)
    assert len(kept.apart.values) == round(0.007 * weights.size)
    # Codes and small scales, the halves of 16 rows, and what is apart, with where rows begin.
    assert kept.bits == pytest.approx(
        3 + 6 / 16 + 64 / 256 + 0.007 * 32 + 32 * 129 / weights.size, abs=0.01
    )
    # GPTQ with two halves for each 32 columns takes 4.
    assert kept.bits < 4
    peer = grouped(weights, hessian, 3, 32, 0.01)
    assert output_error(weights, again, hessian) < output_error(weights, peer, hessian)


def test_spqr_without_outliers_is_gptq_with_small_scales() -> None:
    weights, hessian = layer(32, 64)
    kept = spqr.encode(weights, hessian, 4, 0.0)
    assert len(kept.apart.values) == 0
    again = spqr.decode(kept).astype(np.float64)
    number = np.repeat(np.arange(4), 16)
    scale = kept.outer[0][:, number].repeat(16, 0).astype(np.float32)
    step = kept.outer[1][:, number].repeat(16, 0).astype(np.float32)
    zero = kept.outer[2][:, number].repeat(16, 0).astype(np.float32)
    by = kept.outer[3][:, number].repeat(16, 0).astype(np.float32)
    scale = scale + step * kept.scales[:, number]
    zero = zero + by * kept.zeros[:, number]

    def rounded(j: int, left: Matrix) -> Matrix:
        codes = np.rint(left[:, j] / scale[:, j] + zero[:, j]).clip(0, 15).astype(np.float32)
        return (scale[:, j] * (codes - zero[:, j])).astype(np.float64)[:, None]

    assert np.array_equal(propagate(weights, inverse_factor(hessian), rounded), again)


def test_levels_where_weights_matter_lose_less_than_even_ones() -> None:
    rng = np.random.default_rng(5)
    weights = rng.standard_t(4, (48, 192)) * 0.03
    matter = rng.random((48, 192)) ** 4
    kept = kmeans.encode(weights, matter, 3, apart=False)
    even = np.linspace(weights.min(axis=1), weights.max(axis=1), 8, axis=1)
    levels = kept.levels.astype(np.float64)
    found = kmeans.objective(weights, matter, levels)
    assert (found <= kmeans.objective(weights, matter, even)).all()
    assert found.sum() < 0.5 * kmeans.objective(weights, matter, even).sum()
    again = kmeans.decode(kept)
    assert np.allclose(((weights - again) ** 2 * matter).sum(axis=1), found, rtol=1e-4)


def test_looking_levels_up_gives_the_bits_of_the_unpacked_matrix() -> None:
    rng = np.random.default_rng(6)
    weights, matter = rng.standard_t(3, (24, 96)), rng.random((24, 96))
    kept = kmeans.encode(weights, matter)
    assert kept.bits == pytest.approx(3 + 8 * 16 / 96 + 0.0045 * 32 + 32 * 25 / 2304, abs=0.02)
    unpacked, x = kmeans.decode(kept), rng.standard_normal(96).astype(np.float32)
    wanted = np.zeros(24, np.float32)
    apart = np.zeros(unpacked.shape, np.bool_)
    apart[np.repeat(np.arange(24), np.diff(kept.apart.starts)), kept.apart.columns] = True
    for mask in (~apart, apart):
        for j in range(96):
            wanted += np.where(mask[:, j], unpacked[:, j] * x[j], np.float32(0))
    assert np.array_equal(kmeans.product(kept, x), wanted)


def test_sums_of_entries_lose_less_than_gptq_of_two_bits() -> None:
    weights, hessian = layer(512, 128)
    kept = additive.encode(weights, hessian, 2, 6, rounds=2)
    again = additive.decode(kept).astype(np.float64)
    # 12 bits for 8 weights, a scale of 16 a row, and codebooks; GPTQ takes 2 + 32 / 64.
    assert kept.bits == pytest.approx(1.5 + 16 / 128 + 2 * 64 * 8 * 16 / weights.size)
    peer = grouped(weights, hessian, 2, 64, 0.01)
    assert kept.bits < 2.5
    assert output_error(weights, again, hessian) < output_error(weights, peer, hessian)
    x = np.random.default_rng(1).standard_normal(128).astype(np.float32)
    wanted = again @ x
    # Each of 128 terms in float32, and of their partial sums.
    bound = 2.0**-23 * 16 * (np.abs(again) @ np.abs(x))
    assert (np.abs(additive.product(kept, x) - wanted) <= bound).all()


def test_a_wider_beam_and_another_round_lose_no_more() -> None:
    weights, hessian = layer(64, 64)
    greedy = additive.encode(weights, hessian, 2, 5, rounds=0, beam=1)
    books, codes = greedy.books.astype(np.float64), greedy.codes.astype(np.int64)
    scaled = weights / greedy.scales[:, None].astype(np.float64)

    def error(codes: NDArray[np.int64]) -> Matrix:
        near = additive.decode(additive.Additive(5, greedy.books, codes.astype(np.uint16), ones))
        apart = scaled - near
        return np.einsum("nk,kl,nl->n", apart, hessian, apart)

    ones = np.ones(64, np.float16)
    before = error(codes)
    one = additive.search(scaled, hessian, books, codes, 1)
    two = additive.search(scaled, hessian, books, one, 8)
    slack = 1 + 1e-5
    assert (error(one) <= before * slack).all()
    assert (error(two) <= error(one) * slack).all()
    # Of one group alone the wide beam has what the narrow one finds among its choices.
    alone = np.einsum("kl,kl->kl", hessian, np.kron(np.eye(8), np.ones((8, 8))))
    first, wide = (additive.search(scaled, alone, books, codes, b) for b in (1, 8))
    assert error_in(scaled, alone, books, wide).sum() <= error_in(scaled, alone, books, first).sum()


def error_in(weights: Matrix, hessian: Matrix, books: Matrix, codes: NDArray[np.int64]) -> Matrix:
    near = sum(books[m][codes[:, :, m]] for m in range(len(books)))
    apart = weights - np.asarray(near).reshape(weights.shape)
    found: Matrix = np.einsum("nk,kl,nl->n", apart, hessian, apart)
    return found


@pytest.mark.parametrize("bits", [1, 2])
def test_the_best_path_is_the_best_of_all(bits: int) -> None:
    state_bits, length = 4, 8 // bits
    rng = np.random.default_rng(bits)
    runs = rng.standard_normal((5, length)).astype(np.float32)
    overlap = rng.integers(0, 1 << (state_bits - bits), 5)
    states = trellis.best_path(runs, bits, state_bits, overlap)
    found = ((trellis.values(state_bits)[states] - runs) ** 2).sum(axis=1)
    for number, run in enumerate(runs):
        best = np.inf
        for symbols in product(range(1 << bits), repeat=length):
            state, path = int(overlap[number]), []
            for symbol in symbols:
                state = ((state << bits) | symbol) & ((1 << state_bits) - 1)
                path.append(state)
            if state % (1 << (state_bits - bits)) == overlap[number]:
                values = trellis.values(state_bits)[path]
                best = min(best, float(((values - run) ** 2).sum()))
        assert found[number] == pytest.approx(best, rel=1e-5)


def test_two_bits_of_a_trellis_beat_the_best_four_levels() -> None:
    runs = np.random.default_rng(7).standard_normal((24, 256)).astype(np.float32)
    symbols = trellis.encode_runs(runs, 2, 10)
    assert symbols.max() < 4
    assert np.array_equal(symbols, trellis.encode_runs(runs, 2, 10))
    again = trellis.decode_runs(symbols, 2, 10)
    # Lloyd and Max: 0.1175.
    assert ((again - runs) ** 2).mean() < 0.095


@pytest.mark.slow
def test_a_wide_trellis_is_near_the_bound() -> None:
    runs = np.random.default_rng(8).standard_normal((4, 256)).astype(np.float32)
    again = trellis.decode_runs(trellis.encode_runs(runs, 2, 16), 2, 16)
    assert ((again - runs) ** 2).mean() < 0.078


def test_a_matrix_in_trellis_codes_loses_less_than_gptq_of_two_bits() -> None:
    weights, hessian = layer(64, 128, tail=0.01)
    kept = trellis.encode(weights, hessian, 2, 8)
    assert kept.total_bits < 2.3
    error = output_error(weights, trellis.decode(kept).astype(np.float64), hessian)
    assert error < output_error(weights, grouped(weights, hessian, 2, 64, 0.01), hessian)


def test_rotated_groups_help_scales_that_are_powers_of_two() -> None:
    weights, hessian = layer(128, 256, tail=0.02)
    errors = {}
    for name, format in (("MXFP4", micro_rotation.MXFP4), ("NVFP4", micro_rotation.NVFP4)):
        turn = micro_rotation.rotation(256, format.group)
        assert np.allclose(turn @ turn.T, np.eye(256))
        for rotated in (False, True):
            found = micro_rotation.encode(weights, hessian, format, rotated=rotated)
            base = (weights @ turn, turn.T @ hessian @ turn) if rotated else (weights, hessian)
            errors[name, rotated] = output_error(base[0], found, base[1])
            steps = np.abs(found.reshape(-1, format.group)) / format.unit(base[0])
            for group in steps[:64]:
                scaled = group / format.scales[:, None]
                assert np.isin(scaled, micro_rotation.E2M1).all(axis=1).any()
    gain = {n: errors[n, True] / errors[n, False] for n in ("MXFP4", "NVFP4")}
    assert gain["MXFP4"] < 0.9
    assert gain["MXFP4"] < gain["NVFP4"]


def test_columns_that_come_twice_make_up_for_what_four_bits_lose() -> None:
    rng = np.random.default_rng(9)
    x, weights = rng.standard_normal((16, 96)), rng.standard_normal((24, 96)) * 0.1
    x[:, [3, 40, 77]] *= 30
    columns = augmented.large_columns(x)
    assert columns.tolist() == [3, 40, 77]
    wide, doubled = augmented.augmented(x, weights, columns)
    assert wide.shape == (16, 99)
    near = augmented.four_bits(x)
    lost = augmented.four_bits((x - near)[:, columns])
    small = augmented.four_bits(weights)
    # Sums of few bits each: exact in float64, in any order.
    assert np.array_equal(wide @ doubled.T, near @ small.T + lost @ small[:, columns].T)
    whole = near.copy()
    whole[:, columns] += lost
    left, before = (np.abs(y - x)[:, columns].max() for y in (whole, near))
    assert left < before / 4
    errors = [np.linalg.norm(p - x @ small.T) for p in (wide @ doubled.T, near @ small.T)]
    assert errors[0] < 0.8 * errors[1]


def test_a_learnt_rotation_stays_one_and_loses_less_than_hadamards() -> None:
    rng = np.random.default_rng(10)
    k = 32
    weights = rng.standard_normal((64, k)) * np.exp(0.5 * rng.standard_normal(k))
    x = rng.standard_normal((96, k))
    x[:, [2, 19]] *= 25
    signs = rng.integers(0, 2, k) * 2 - 1
    start = trellis.hadamard(k) * signs[:, None]
    plain = learned_rotation.loss((weights, x), np.eye(k), 4)
    begun = learned_rotation.loss((weights, x), start, 4)
    assert begun < plain / 2
    turn = start
    for _ in range(20):
        step = rng.standard_normal((k, k))
        turn = learned_rotation.cayley(0.1 * (step - step.T), turn)
        assert np.abs(turn.T @ turn - np.eye(k)).max() < 1e-10
    found = learned_rotation.learn((weights, x), start, 4)
    assert np.abs(found.T @ found - np.eye(k)).max() < 1e-10
    assert learned_rotation.loss((weights, x), found, 4) < 0.9 * begun
    # What others are multiplied with stays: the rotation goes into both sides.
    product = (x @ found) @ (weights @ found).T
    assert np.abs(product - x @ weights.T).max() < 1e-10 * np.abs(product).max()
