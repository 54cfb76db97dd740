"""Directions that methods of keeping less KV claim, on the keys and values of a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kv_lab
from kv_lab import Bounded, Codec, Lab, Method, Watch
from strata.backends.kv_types import KV_TYPES, choose_kv_type

TEXT = Path(__file__).parents[2] / "ARCHITECTURE.md"
ROWS, DIM = 192, 64


@pytest.fixture(scope="module")
def lab(smollm2_path: Path) -> Lab:
    return Lab(smollm2_path, TEXT.read_text(encoding="utf-8")[2000:6000], ROWS)


@pytest.fixture(scope="module")
def base(lab: Lab) -> kv_lab.Floats:
    return lab.logits(Method())


def drawn(*shape: int, seed: int = 0) -> kv_lab.Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_codes_of_many_bits_lose_next_to_nothing_and_of_fewer_more() -> None:
    x = drawn(64, 2, DIM)
    errors = [float(np.abs(kv_lab.per_token(b, rotated=True)(0, x) - x).max()) for b in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05


def test_groups_that_are_not_whole_are_kept_as_they_are() -> None:
    x = drawn(70, 2, DIM)
    read = kv_lab.per_channel(2, 32)(0, x)
    assert (read[64:] == x[64:]).all()
    assert (read[:64] == kv_lab.per_channel(2, 32)(0, x[:64])).all()


@pytest.mark.parametrize(
    ("bits", "claimed"), [(1, 0.363), (2, 0.1175), (3, 0.03454), (4, 0.009497)]
)
def test_distortion_of_turboquant_is_that_of_its_paper(bits: int, claimed: float) -> None:
    """Lloyd-Max codes of normal numbers, which coordinates of a turned unit vector nearly are."""
    x = drawn(1000, 1, 128)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    lost = np.square(kv_lab.turbo(bits, 128)(0, x) - x).sum(axis=-1).mean()
    assert abs(lost / claimed - 1) < 0.05


def test_bounds_are_above_every_score_and_all_blocks_are_exact() -> None:
    q, k, v = drawn(100, 4, DIM), drawn(100, 2, DIM, seed=1), drawn(100, 2, DIM, seed=2)
    found = Bounded(16, top=100)
    bound = found._bounds(q, k, 0.125, 7)
    s = kv_lab.scores(q, k, 0.125)
    for block in range(7):
        assert (s[..., 16 * block : 16 * block + 16].max(-1) <= bound[..., block] + 1e-4).all()
    exact = Method().attend(0, q, k, v, 0.125)
    np.testing.assert_allclose(found.attend(0, q, k, v, 0.125), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-1])
def test_what_is_provably_light_is_light(epsilon: float) -> None:
    """Outputs move by at most twice epsilon times the largest value; keys that point away from
    every query are not read."""
    q, k, v = 2 + drawn(160, 4, 8) / 4, drawn(160, 2, 8, seed=1) / 4, drawn(160, 2, 8, seed=2)
    k[:32] += 1
    k[32:144] -= 1
    found = Bounded(16, epsilon=epsilon)
    out, exact = found.attend(0, q, k, v, 0.35), Method().attend(0, q, k, v, 0.35)
    assert np.abs(out - exact).max() <= 2 * epsilon * np.abs(v).max() + 1e-5
    assert found.bytes < 0.8 * found.whole


def test_caches_with_room_for_all_evict_nothing() -> None:
    q, k, v = drawn(50, 4, DIM), drawn(50, 2, DIM, seed=1), drawn(50, 2, DIM, seed=2)
    exact = Method().attend(0, q, k, v, 0.125)
    for method in (kv_lab.window(50, 0), kv_lab.window(40, 10), kv_lab.heavy_hitters(50, 10)):
        np.testing.assert_allclose(method.attend(0, q, k, v, 0.125), exact, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_exact_attention_in_the_lab_is_the_references(lab: Lab, base: kv_lab.Floats) -> None:
    """What has a row in the table of KV types gives there what the backend gives."""
    kept = choose_kv_type("q8_0:int4", KV_TYPES)
    got = lab.logits(Codec(kv_lab.native(kept, 0), kv_lab.native(kept, 1)))
    lost = kv_lab.compared(base, got, lab.tokens)
    assert 0 < lost["kl"] < 0.1


@pytest.mark.slow
def test_claims_about_codecs(lab: Lab, base: kv_lab.Floats) -> None:
    def lost(method: Method) -> float:
        return kv_lab.compared(base, lab.logits(method), lab.tokens)["kl"]

    plain, turned = kv_lab.per_token(4, rotated=False), kv_lab.per_token(4, rotated=True)
    assert lost(Codec(turned, turned)) < lost(Codec(plain, plain))
    two = kv_lab.per_token(2, rotated=True)
    assert lost(Codec(turned, two)) < lost(Codec(two, turned))
    token = kv_lab.per_token(2, rotated=False)
    recent = Codec(token, token, sealed=32)
    assert lost(Codec(kv_lab.per_channel(2, 32), token, sealed=32)) < lost(recent)


@pytest.mark.slow
def test_claims_about_eviction(lab: Lab, base: kv_lab.Floats) -> None:
    def lost(method: Method) -> float:
        return kv_lab.compared(base, lab.logits(method), lab.tokens)["kl"]

    size = ROWS // 4
    window, sinks = kv_lab.window(size, 0), kv_lab.window(size - 4, 4)
    assert lost(sinks) < lost(window)
    assert lost(kv_lab.heavy_hitters(size, size // 2)) < lost(window)


@pytest.mark.slow
def test_eigenvectors_of_what_is_multiplied_lose_less_than_hadamard_alone(lab: Lab) -> None:
    """OSCAR's claim, weighted by the queries; on the text that it was calibrated with."""
    watched = Watch()
    lab.logits(watched)
    products = watched.key_products()
    turn, plain = kv_lab.oscar(2, products), kv_lab.per_token(2, rotated=True)

    def weighted(read: object) -> float:
        total = 0.0
        for layer, k in watched.k.items():
            error = (read(layer, k) - k).transpose(1, 0, 2)  # type: ignore[operator]
            total += float(np.einsum("hrd,hde,hre->", error, products[layer], error))
        return total

    assert weighted(turn) < weighted(plain)
