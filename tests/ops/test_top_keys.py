"""Keys that are chosen one by one, and attention that sees no others."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import KV_TYPES, KVType
from strata.backends.reference import ReferenceBackend
from strata.program import PagedKV, ProgramError, state_groups
from support.sampling import every
from support.small_programs import Floats, Lab

ROWS, DIM, HEADS, KV_HEADS = 600, 24, 4, 2
EPS = 2.0**-24


def lab(heads: int, width: int, most: int, *, whole: bool = True, seen: bool = True) -> Lab:
    """What chooses is whole numbers, or any: sums of the former have no rounding, and are often the
    same. Rows of attention, or without ``seen`` the positions."""
    random = np.random.default_rng(heads)
    sizes = (heads * width, width, heads, HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM)
    x = random.standard_normal((ROWS, sum(sizes))).astype(np.float32)
    choosing = sum(sizes[:3])
    if whole:
        x[:, :choosing] = random.integers(-2, 3, (ROWS, choosing))
    starts, eye = np.cumsum((0, *sizes)), np.eye(sum(sizes), dtype=np.float32)
    parts = zip("abwqkv", itertools.pairwise(starts), strict=True)
    arrays = {name: eye[first:last] for name, (first, last) in parts}

    def body(m, x):  # type: ignore[no-untyped-def]
        made = {name: m.matmul(x, name) for name in "abwqkv"}
        chosen = None
        if most < ROWS or not seen:
            chosen = m.top_keys(made["a"], made["b"], made["w"], layer=1, most=most)
        if not seen:
            return chosen
        return m.attention(
            *(made[name] for name in "qkv"),
            layer=0,
            heads=HEADS,
            kv_heads=KV_HEADS,
            k_dim=DIM,
            v_dim=DIM,
            scale=DIM**-0.5,
            chosen=chosen,
        )

    index = PagedKV(1, width, 1, v_in_k=True, index=True)
    return Lab(x, arrays, body, [PagedKV(KV_HEADS, DIM, DIM, chosen=True), index])


@cache
def oracle(heads: int, width: int, most: int, seen: bool) -> Floats:
    return lab(heads, width, most, seen=seen).run(ReferenceBackend(), (350,), KV_TYPES[0])


# More heads than attention holds at once; keys of no whole vector.
SHAPES = [(3, 16, 100), (50, 20, 64), (1, 7, 1)]


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("shape", every(3, SHAPES), ids=str)
def test_the_same_keys_are_chosen_and_seen(isa: str, shape: tuple[int, int, int]) -> None:
    """Of those that weigh the same the later, whatever the cut and the number of threads."""
    picked = oracle(*shape, False)
    assert np.array_equal(lab(*shape, seen=False).run(CpuBackend(2, isa=isa), (350,)), picked)
    made = lab(*shape)
    got = made.run(CpuBackend(threads=2, isa=isa), (350,))
    assert np.abs(got - oracle(*shape, True)).max() <= 400 * EPS
    for threads, cuts in ((1, (1, 2, 400, 598)), (3, (64, 500, 599))):
        again = made.run(CpuBackend(threads=threads, isa=isa), cuts)
        assert np.array_equal(again, got)


def test_what_is_chosen_weighs_most() -> None:
    heads, width, most = SHAPES[0]
    made = lab(heads, width, most)
    q, k, w = np.split(made.x[:, : heads * width + width + heads], [heads * width, -heads], axis=1)
    picked = oracle(heads, width, most, False)
    assert picked[most - 1].tolist() == [*range(most)]
    assert picked[9].tolist() == [*range(10), *[-1] * (most - 10)]
    ties = 0
    for row in range(most, ROWS):
        scores = np.maximum(q[row].reshape(heads, width) @ k[: row + 1].T, 0)
        weights = w[row] @ scores
        best = sorted(range(row + 1), key=lambda i: (-weights[i], -i))
        assert picked[row].tolist() == sorted(best[:most])
        ties += weights[best[most - 1]] == weights[best[most]]
    assert ties > 10


@pytest.mark.parametrize("kv_type", KV_TYPES, ids=lambda t: t.name)
def test_keys_of_every_type_choose(kv_type: KVType) -> None:
    """Near the edge another key may be chosen, by rounding: the reference's weights of both are
    nearly the same, and no cut changes which."""
    heads, width, most = SHAPES[0]
    made = lab(heads, width, most, whole=False, seen=False)
    got = made.run(CpuBackend(threads=2), (350,), kv_type)
    assert np.array_equal(made.run(CpuBackend(threads=3), (1, 77, 500, 599), kv_type), got)
    x = made.x[:, : heads * width + width + heads]
    q, k, w = np.split(x, [heads * width, heads * width + width], axis=1)
    kept = kv_type.keys.stored(k[:, None, :])[:, 0]
    for row in range(most, ROWS, 7):
        scores = np.maximum(q[row].reshape(heads, width) @ kept[: row + 1].T, 0)
        weights = w[row] @ scores
        least = np.sort(weights)[-most]
        near = np.abs(weights - least) < 1e-4
        chosen = np.zeros(row + 1, bool)
        chosen[got[row].astype(int)] = True
        assert chosen.sum() == most
        assert (chosen | near)[weights >= least].all()
        assert (~chosen | near)[weights < least].all()


@pytest.mark.parametrize("isa", available_isas())
def test_where_all_keys_are_chosen_bits_are_those_of_plain_attention(isa: str) -> None:
    backend = CpuBackend(threads=2, isa=isa)
    plain = lab(3, 16, ROWS).run(backend, (350,))
    assert np.array_equal(lab(3, 16, ROWS - 1).run(backend, (350,))[:-1], plain[:-1])


def test_what_makes_no_sense_is_refused() -> None:
    for sizes in ((4, 16, 5), (4, 12, 4)):
        with pytest.raises(ProgramError, match="top_keys"):
            Lab(
                np.zeros((2, 64), np.float32),
                {"k": np.eye(sizes[1], 64), "w": np.eye(sizes[2], 64)},
                lambda m, x: m.top_keys(x, m.matmul(x, "k"), m.matmul(x, "w"), layer=0, most=3),
            )
    for wrong in ({"chosen": True}, {"index": True}):
        with pytest.raises(ProgramError, match="not of a window"):
            PagedKV(1, 16, 16, window=8, **wrong)  # type: ignore[arg-type]
    index = PagedKV(1, 16, 1, v_in_k=True, index=True)
    groups = state_groups([PagedKV(1, 16, 16), index, PagedKV(1, 16, 16, window=8), index])
    assert [(g.layers, g.index) for g in groups] == [((0,), False), ((1, 3), True), ((2,), False)]


def own_choices(heads: int, width: int, most: int, block: int, local: int) -> Lab:
    """Every head chooses blocks for itself, by whole numbers."""
    random = np.random.default_rng(block)
    x = random.integers(-2, 3, (300, (heads + 1) * width)).astype(np.float32)
    eye = np.eye(x.shape[1], dtype=np.float32)

    def body(m, x):  # type: ignore[no-untyped-def]
        q, k = m.matmul(x, "q"), m.matmul(x, "k")
        return m.top_keys(q, k, layer=0, most=most, block=block, local=local)

    arrays = {"q": eye[: heads * width], "k": eye[heads * width :]}
    return Lab(x, arrays, body, [PagedKV(1, width, 1, v_in_k=True, index=True)])


# Blocks that end within KV blocks, and beyond them; more heads than attention holds at once.
BLOCKS = [(2, 16, 24, 8, 1), (3, 7, 60, 5, 3), (40, 16, 200, 100, 1), (1, 16, 9, 1, 0)]


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_heads_choose_blocks_for_themselves(shape: tuple[int, int, int, int, int]) -> None:
    heads, width, most, block, local = shape
    made = own_choices(*shape)
    picked = made.run(ReferenceBackend(), (150,), KV_TYPES[0])
    for isa in available_isas():
        for threads, cuts in ((1, ()), (3, (1, 64, 65, 299))):
            found = made.run(CpuBackend(threads=threads, isa=isa), cuts)
            assert np.array_equal(found, picked)
    q, k = np.split(made.x, [heads * width], axis=1)
    for row in (0, most - 1, most, 130, 299):
        scores = q[row].reshape(heads, width) @ k[: row + 1].T
        for head, own in enumerate(picked[row].reshape(heads, most)):
            worth = [max(scores[head, i : i + block]) for i in range(0, row + 1, block)]
            last = range(len(worth))[len(worth) - min(local, len(worth)) :]
            best = sorted(range(len(worth)), key=lambda i: (i not in last, -worth[i], -i))
            blocks = sorted(best[: most // block])
            seen = [p for i in blocks for p in range(i * block, i * block + block) if p <= row]
            assert own.tolist() == [*seen, *[-1] * (most - len(seen))]
