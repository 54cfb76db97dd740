"""Keys and values of different types, and layers with types of their own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import F32, KV_TYPES, choose_kv_type
from strata.errors import UsageError
from strata.program import PagedKV, state_groups
from support.small_programs import Floats, Lab

DIM, HEADS, KV_HEADS, ROWS = 40, 4, 2, 600


def lab() -> Lab:
    """Attention whose values are whole numbers, which both f16 and bf16 hold."""
    random = np.random.default_rng(1)
    sizes = (HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM)
    x = random.standard_normal((ROWS, sum(sizes))).astype(np.float32)
    x[:, -sizes[2] :] = random.integers(-100, 100, (ROWS, sizes[2]))
    starts, eye = np.cumsum((0, *sizes)), np.eye(sum(sizes), dtype=np.float32)
    arrays = {
        name: eye[a:b] for name, (a, b) in zip("qkv", itertools.pairwise(starts), strict=True)
    }
    return Lab(
        x,
        arrays,
        lambda m, x: m.attention(
            *(m.matmul(x, name) for name in "qkv"),
            layer=0,
            heads=HEADS,
            kv_heads=KV_HEADS,
            k_dim=DIM,
            v_dim=DIM,
            scale=DIM**-0.5,
        ),
        [PagedKV(KV_HEADS, DIM, DIM)],
    )


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("keys", ["f16", "bf16", "q8_0", "int4"])
def test_unpacked_blocks_give_the_bits_of_blocks_in_place(isa: str, keys: str) -> None:
    """Values that two types hold alike: one of the pairs is read in place, the other is not."""
    results: list[Floats] = []
    for values in ("f16", "bf16"):
        backend = CpuBackend(threads=2, isa=isa)
        results.append(lab().run(backend, (512,), choose_kv_type(f"{keys}:{values}", KV_TYPES)))
    assert results[0].tobytes() == results[1].tobytes()


def test_names_have_one_spelling() -> None:
    for given, said in {
        "q8_0:q8_0": "q8_0",
        "q8_0:int4": "q8_0:int4",
        "f16,3=int4,1=int4,2=int4:int4": "f16,1-3=int4",
        "f16,0-9=f16": "f16",
        "q8_0:int4,0-1=f16,7=q8_0": "q8_0:int4,0-1=f16,7=q8_0",
    }.items():
        assert choose_kv_type(given, KV_TYPES).name == said
        assert choose_kv_type(said, KV_TYPES) == choose_kv_type(given, KV_TYPES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("q4_0", "no KV type 'q4_0'"),
        ("f16:", "no KV type ''"),
        ("f16:int4:q8_0", "no KV type 'int4:q8_0'"),
        ("f16,3", "'3' where layers are said as"),
        ("f16,5-2=int4", "'5-2=int4' where layers are said as"),
        ("f16,0-99999=int4", "where layers are said as"),
        ("f16,=int4", "where layers are said as"),
        ("f16,1=q4_0", "no KV type 'q4_0'"),
        ("x" * 5000, "no KV type 'xxx"),
        ("f16" + ",0-4095=int4" * 100_000, "has more than 4096 parts"),
    ],
)
def test_what_is_no_type_is_one_line(given: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_kv_type(given, KV_TYPES)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_layer_that_is_not_there_is_named() -> None:
    layers = [PagedKV(1, 16, 16)] * 3
    kept = choose_kv_type("f16,2-3=int4", KV_TYPES)
    with pytest.raises(UsageError, match=r"names layer 3, and the model's last is 2"):
        kept.block_nbytes(layers, state_groups(layers)[0])
    many = choose_kv_type("f16" + "".join(f",{n}=int4" for n in range(0, 500, 2)), KV_TYPES)
    with pytest.raises(UsageError) as caught:
        many.block_nbytes(layers, state_groups(layers)[0])
    assert len(str(caught.value)) < 400


def test_lossless_is_sixteen_bits_everywhere() -> None:
    assert choose_kv_type("f16", KV_TYPES).lossless
    assert F32.lossless
    for name in ("bf16", "f16:int4", "f16,4=q8_0"):
        assert not choose_kv_type(name, KV_TYPES).lossless
