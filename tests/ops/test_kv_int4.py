"""Keys and values of four bits: what rotation is for, and what it leaves as it was."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import INT4, _rotated, as_int4
from strata.program import PagedKV
from support.small_programs import Lab


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
    # Keys in words of eight numbers, values in pairs of 16.
    assert INT4.head_nbytes(33, 33) == 64 * ((20 + 4) + (32 + 4))


def attention_lab(rows: int, heads: int, k_dim: int, v_dim: int, kv_heads: int = 2) -> Lab:
    sizes = (heads * k_dim, kv_heads * k_dim, kv_heads * v_dim)
    starts, eye = np.cumsum((0, *sizes)), np.eye(sum(sizes), dtype=np.float32)
    pairs = zip("qkv", itertools.pairwise(starts), strict=True)
    return Lab(
        np.random.default_rng(k_dim).standard_normal((rows, sum(sizes))).astype(np.float32),
        {name: eye[a:b] for name, (a, b) in pairs},
        lambda m, x: m.attention(
            *(m.matmul(x, name) for name in "qkv"),
            layer=0,
            heads=heads,
            kv_heads=kv_heads,
            k_dim=k_dim,
            v_dim=v_dim,
            scale=k_dim**-0.5,
        ),
        [PagedKV(kv_heads, k_dim, v_dim)],
    )


# Query vectors of a tile from one to more than its registers hold, heads that are no whole words.
SHAPES = [(2, 64, 64), (6, 128, 128), (8, 64, 96), (10, 33, 70), (22, 80, 80)]


@pytest.mark.parametrize(("heads", "k_dim", "v_dim"), SHAPES)
def test_bits_are_those_of_every_cut_tile_and_instruction_set(
    heads: int, k_dim: int, v_dim: int
) -> None:
    rows = 570
    lab = attention_lab(rows, heads, k_dim, v_dim)
    found = {
        lab.run(CpuBackend(threads=threads, isa=isa), cuts, INT4).tobytes()
        for isa in set(available_isas()) - {"scalar"}
        for threads, cuts in ((1, [512]), (2, [1, 63, 64, 130, 510, 511, 512, 569]))
    }
    assert len(found) == 1


@pytest.mark.parametrize("isa", available_isas())
def test_what_a_block_held_before_leaves_no_trace(isa: str) -> None:
    """Its scales may have been no numbers: nobody sees the slots that are not written yet."""
    lab = attention_lab(150, 6, 64, 64)
    backend = CpuBackend(threads=2, isa=isa)
    clean, used = lab.load(backend, INT4), lab.load(backend, INT4)
    dirt = np.full(used.state.block_nbytes(0), 0xFF, np.uint8)
    for block in range(2 * used.blocks):
        used.state.write(0, block, dirt)
    got = used.rows([70, 149])
    assert np.isfinite(got).all()
    assert got.tobytes() == clean.rows([70, 149]).tobytes()
