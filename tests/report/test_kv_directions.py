"""What methods of keeping or reading less KV do, against the plainest way to say it, and premises
that they rest on, on the keys and values of a real model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import kv_lab
import kv_methods
from kv_lab import Blocks, Lab, Method, TwoOfFour, Watch

TEXT = Path(__file__).parents[2] / "ARCHITECTURE.md"
ROWS, DIM = 40, 16


def drawn(*shape: int, seed: int = 0) -> kv_lab.Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def attended(method: Method, rows: int = ROWS) -> kv_lab.Floats:
    q, k, v = drawn(rows, 4, DIM), drawn(rows, 2, DIM, seed=1), drawn(rows, 2, DIM, seed=2)
    return method.attend(3, q, k, v, 0.25)


def one_by_one(keep: np.ndarray, rows: int = ROWS) -> kv_lab.Floats:
    """Exact attention of each head over the keys of ``keep`` [heads, rows, keys], row by row."""
    q, k, v = drawn(rows, 4, DIM), drawn(rows, 2, DIM, seed=1), drawn(rows, 2, DIM, seed=2)
    out = np.zeros_like(q)
    for head in range(4):
        for row in range(rows):
            at = [key for key in range(row + 1) if keep[head, row, key]]
            w = np.exp(0.25 * (k[at, head // 2] @ q[row, head]))
            out[row, head] = w @ v[at, head // 2] / w.sum()
    return out


def everywhere(keep: np.ndarray) -> np.ndarray:
    return np.broadcast_to(keep, (4, *keep.shape))


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_keys_back_and_forth_gives_them_back(interleaved: bool) -> None:
    freq = 10000.0 ** (-np.arange(DIM // 2, dtype=np.float32) / (DIM // 2))
    lab = SimpleNamespace(inv_freq=freq, interleaved=interleaved)
    x = drawn(300, 2, DIM)
    back = kv_lab.turned_back(lab, x, -1)  # type: ignore[arg-type]
    assert np.abs(back - x)[1:].max() > 0.1
    np.testing.assert_allclose(
        kv_lab.turned_back(lab, back, 1),  # type: ignore[arg-type]
        x,
        atol=1e-5,
    )


def test_longformer_sees_a_window_and_what_everybody_sees() -> None:
    keep = np.zeros((ROWS, ROWS), bool)
    for row in range(ROWS):
        for key in range(row + 1):
            keep[row, key] = row - key < 6 or key % 10 == 0 or row % 10 == 0
    got = attended(kv_lab.longformer(6, 10))
    np.testing.assert_allclose(got, one_by_one(everywhere(keep)), atol=1e-5)


def test_big_bird_draws_the_same_blocks_again() -> None:
    got = attended(kv_lab.big_bird(4, 2, 7))
    assert attended(kv_lab.big_bird(4, 2, 7)).tobytes() == got.tobytes()
    assert attended(kv_lab.big_bird(4, 2, 8)).tobytes() != got.tobytes()
    # As many drawn as there are is everything.
    np.testing.assert_allclose(attended(kv_lab.big_bird(4, ROWS, 7)), attended(Method()), atol=1e-6)


def test_two_of_four_scores_are_the_largest() -> None:
    q, k = drawn(ROWS, 4, DIM), drawn(ROWS, 2, DIM, seed=1)
    keep = np.zeros((4, ROWS, ROWS), bool)
    for head in range(4):
        for row in range(ROWS):
            for first in range(0, row + 1, 4):
                keys = range(first, min(first + 4, row + 1))
                best = sorted(keys, key=lambda at: -float(q[row, head] @ k[at, head // 2]))
                keep[head, row, best[:2]] = True
    method = TwoOfFour()
    np.testing.assert_allclose(attended(method), one_by_one(keep), atol=1e-5)
    assert method.bytes / method.whole == keep.sum() / (4 * ROWS * (ROWS + 1) / 2)


def test_h2o_keeps_what_got_most_and_what_is_recent() -> None:
    budget, recent = 12, 4
    q, k = drawn(ROWS, 4, DIM), drawn(ROWS, 2, DIM, seed=1)
    keep = np.zeros((4, ROWS, ROWS), bool)
    for kv_head in range(2):
        there, got = list[int](), np.zeros(ROWS)
        for row in range(ROWS):
            there.append(row)
            for head in (2 * kv_head, 2 * kv_head + 1):
                keep[head, row, there] = True
                w = np.exp(0.25 * (k[there, kv_head] @ q[row, head]))
                got[there] += w / w.sum()
            if len(there) > budget:
                old = [at for at in there if at <= row - recent]
                there.remove(min(old, key=lambda at: got[at]))
    got_out = attended(kv_lab.heavy_hitters(budget, recent))
    np.testing.assert_allclose(got_out, one_by_one(keep), atol=1e-5)


def test_products_are_right_in_the_mean_of_turboquants_variant_for_them() -> None:
    """And too small where codes alone are read, which lie within what they stand for."""
    dim, draws = 64, 400
    x, y = drawn(1, 1, dim), drawn(1, 1, dim, seed=1)
    y = x + y / 4
    exact = float((x * y).sum())
    found = [float((kv_lab.turbo_unbiased(3, dim, seed)(0, x) * y).sum()) for seed in range(draws)]
    error = np.std(found) / np.sqrt(draws)
    assert abs(np.mean(found) - exact) < 4 * error
    two = float((kv_lab.turbo(2, dim)(0, x) * y).sum())
    assert exact - two > 4 * error


@pytest.mark.slow
def test_premises_and_directions_on_a_real_model(smollm2_path: Path) -> None:
    """Blocks chosen by antidiagonals hold more weight than drawn ones (XAttention), here no more
    than those that the diagonal alone chooses. Neighbouring layers are not alike, so that MiniCache
    merges nothing; and what the nearest of earlier tokens leaves of one is more than it was, so
    that DeltaKV has nothing to gain untrained."""
    lab = Lab(smollm2_path, TEXT.read_text(encoding="utf-8")[2000:6000], 96)
    watched, blocks = Watch(), {}
    lab.logits(watched)
    q, k, v = watched.q, watched.k, watched.v
    for by in ("antidiagonals", "diagonal", "random"):
        chosen = Blocks(16, 0.4, by)
        for layer in range(0, len(q), 3):
            chosen.attend(layer, q[layer], k[layer], v[layer], 0.125)
        blocks[by] = float(np.mean(chosen.mass))
    assert min(blocks["antidiagonals"], blocks["diagonal"]) > blocks["random"] + 0.05
    assert abs(blocks["antidiagonals"] - blocks["diagonal"]) < 0.03
    found = kv_methods.premises(watched)
    near = [value for name, value in found.items() if name.startswith("MiniCache")]
    assert max(near) < 0.5
    left = [value for name, value in found.items() if name.startswith("DeltaKV")]
    assert min(left) > 1
