"""Keys and values of four bits: what rotation is for, and what it leaves as it was."""

from __future__ import annotations

import numpy as np
import pytest

from strata.backends.kv_types import INT4, _rotated, as_int4


@pytest.mark.parametrize("dim", [16, 24, 33, 64, 80, 96, 128, 256, 576])
def test_rotation_is_its_own_inverse_and_keeps_products(dim: int) -> None:
    random = np.random.default_rng(dim)
    q, k = random.standard_normal((2, 40, dim)).astype(np.float32)
    # 7 butterflies and a factor, each with half a unit in the last place of the largest sum.
    bound = 16 * np.finfo(np.float32).eps * np.sqrt(dim)
    assert np.abs(_rotated(_rotated(k)) - k).max() <= bound * np.abs(k).max()
    products = (q * k).sum(axis=-1)
    rotated = (_rotated(q) * _rotated(k)).sum(axis=-1)
    assert np.abs(rotated - products).max() <= bound * dim * np.abs(q).max() * np.abs(k).max()


def test_no_code_is_farther_off_than_half_a_step() -> None:
    x = np.random.default_rng(1).standard_normal((50, 128)).astype(np.float32)
    for start in (0, 64):
        part, read = x[:, start : start + 64], as_int4(x)[:, start : start + 64]
        step = (part.max(axis=-1) - part.min(axis=-1)) / 15
        # Scale and least value are f16: 15 steps of the one, and the other, by 2^-11.
        slack = 2.0**-11 * (15 * step + np.abs(part).max(axis=-1))
        assert (np.abs(read - part).max(axis=-1) <= step / 2 + slack).all()


def test_rotation_helps_where_a_few_channels_are_large() -> None:
    """As keys are in real models."""
    x = np.random.default_rng(2).standard_normal((200, 64)).astype(np.float32)
    x[:, [3, 40]] *= 12
    plain = np.square(as_int4(x) - x).mean()
    assert np.square(INT4.stored(x) - x).mean() < plain / 2


def test_bytes_of_a_position() -> None:
    assert INT4.head_nbytes(128, 128) == 64 * 2 * (64 + 8)
    assert INT4.head_nbytes(576, 512, v_in_k=True) == 64 * (288 + 36)
