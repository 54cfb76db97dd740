"""Rows that are cut into heads and put together again, and products with a matrix for each head."""

from __future__ import annotations

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.reference import ReferenceBackend
from strata.program import Builder, PagedKV, ProgramError, Weight
from support.native_weights import assert_same_bits
from support.small_programs import Floats, Lab

ISAS = available_isas()


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_columns_and_join(backend: str) -> None:
    x = draw(70, 3 * 24)
    made = CpuBackend(threads=3) if backend == "cpu" else ReferenceBackend()

    def body(b: Builder, x: str) -> str:
        left = b.columns(x, head_dim=24, start=0, width=16)
        right = b.columns(x, head_dim=24, start=20, width=4)
        one = b.columns(x, head_dim=72, start=60, width=5)
        return b.join(b.join(right, left, heads=3), one, heads=3, shared=True)

    heads = x.reshape(70, 3, 24)
    one = np.repeat(x[:, None, 60:65], 3, axis=1)
    want = np.concatenate([heads[..., 20:], heads[..., :16], one], axis=2).reshape(70, -1)
    np.testing.assert_array_equal(Lab(x, {}, body).run(made), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_head_has_the_bits_of_its_own_product(isa: str, format: str) -> None:
    heads, n, k = 3, 48, 64
    x, weight = draw(37, heads * k), draw(heads, n, k, seed=1)
    apart = {f"w{h}": weight[h] for h in range(heads)}
    formats = dict.fromkeys(["w", *apart], format)
    lab = Lab(x, {"w": weight, **apart}, lambda b, x: b.matmul(x, "w"), formats=formats)

    def one_by_one(b: Builder, x: str) -> str:
        out = ""
        for h in range(heads):
            part = b.columns(x, head_dim=heads * k, start=h * k, width=k)
            part = b.matmul(part, f"w{h}")
            out = b.join(out, part, heads=1) if out else part
        return out

    want = Lab(x, {"w": weight, **apart}, one_by_one, formats=formats).run(
        CpuBackend(threads=1, isa=isa)
    )
    assert_same_bits(lab.run(CpuBackend(threads=1, isa=isa)), want)
    assert_same_bits(lab.run(CpuBackend(threads=4, isa=isa), cuts=(1, 2, 9)), want)
    reference = lab.run(ReferenceBackend())
    # Activations are rounded to 8 bits a block, to bfloat16, or not.
    step = {"Q8_0": 1 / 127, "Q4_0": 1 / 127, "BF16": 2.0**-8}.get(format, 2.0**-20)
    held = np.stack([np.abs(x[:, h * k :][:, :k]).max(1, keepdims=True) for h in range(heads)], 1)
    bound = step * held * np.abs(weight).sum(2)[None] * 1.1
    assert (np.abs(want - reference).reshape(37, heads, n) <= bound).all()


def test_what_does_not_fit_is_named() -> None:
    b = Builder("s", lambda name: Weight(name, (3, 16, 32), name), {"x": ("T", 64)})
    with pytest.raises(ProgramError, match=r"'x' .* cannot be multiplied with 'w'"):
        b.matmul("x", "w")
    with pytest.raises(ProgramError, match="columns: 8 to 24 of heads of 16"):
        b.columns("x", head_dim=16, start=8, width=16)
    with pytest.raises(ProgramError, match="are not 5 heads each"):
        b.join("x", "x", heads=5)


@pytest.mark.parametrize("isa", ISAS)
def test_many_heads_of_one_kv_head_have_the_bits_of_few(isa: str) -> None:
    heads, parts, dim, v_dim = 100, 4, 24, 16
    x = draw(90, heads * dim + dim).astype(np.float16).astype(np.float32)
    state = (PagedKV(1, dim, v_dim, v_in_k=True),) * parts

    def attend(b: Builder, x: str, layer: int, first: int, count: int) -> str:
        q = b.columns(x, head_dim=(heads + 1) * dim, start=first * dim, width=count * dim)
        k = b.columns(x, head_dim=(heads + 1) * dim, start=heads * dim, width=dim)
        return b.attention(
            q,
            k,
            layer=layer,
            heads=count,
            kv_heads=1,
            k_dim=dim,
            v_dim=v_dim,
            scale=0.3,
        )

    def few(b: Builder, x: str) -> str:
        each = heads // parts
        out = attend(b, x, 0, 0, each)
        for i in range(1, parts):
            out = b.join(out, attend(b, x, i, i * each, each), heads=1)
        return out

    many = Lab(x, {}, lambda b, x: attend(b, x, 0, 0, heads), state)
    want = Lab(x, {}, few, state).run(CpuBackend(threads=1, isa=isa))
    assert_same_bits(many.run(CpuBackend(threads=1, isa=isa)), want)
    assert_same_bits(many.run(CpuBackend(threads=4, isa=isa), cuts=(1, 40, 41)), want)
