"""Ops over state on the native backend: shapes of KV, windows, branches, recurrent state."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest

from strata.backends.base import NO_BLOCK, Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import F16, KVType
from strata.backends.reference import ReferenceBackend
from strata.program import PagedKV, Recurrent, Shared
from support.hybrid_model import STATE, VOCABULARY, hybrid_model
from support.mixed_sequences import run_mixed
from support.sampling import every
from support.small_programs import Floats, Lab
from support.state_runs import Branching, StateRuns

ISAS = available_isas()
USUAL = ISAS[0]
EPS = 2.0**-24


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tokens(count: int, seed: int = 3) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def attention_lab(
    rows: int, heads: int, kept: PagedKV, *, layers: str = "own", softcap: float = 0.0
) -> Lab:
    """q, k and v are slices of x of f16 numbers. ``layers``: the usual one; ``prefix``, with values
    that are stored apart and are the first elements of keys; ``shared``, a second attention that
    reads the first one's keys and values; ``twice``, a second one that keeps them again."""
    sizes = (heads * kept.k_dim, kept.kv_heads * kept.k_dim, kept.kv_heads * kept.v_dim)
    width = sum(sizes)
    x = draw(rows, width).astype(np.float16).astype(np.float32)
    starts = np.cumsum((0, *sizes))
    eye = np.eye(width, dtype=np.float32)
    arrays = {n: eye[a:b] for n, (a, b) in zip("qkv", itertools.pairwise(starts), strict=True)}
    if layers == "prefix":
        by_head = arrays["k"].reshape(kept.kv_heads, kept.k_dim, width)
        arrays["v"] = by_head[:, : kept.v_dim].reshape(-1, width)

    def body(m: Any, x: str) -> str:
        def attend(layer: int, *operands: str) -> str:
            out: str = m.attention(
                *operands,
                layer=layer,
                heads=heads,
                kv_heads=kept.kv_heads,
                k_dim=kept.k_dim,
                v_dim=kept.v_dim,
                scale=kept.k_dim**-0.5,
                window=kept.window,
                softcap=softcap,
            )
            return out

        q, *kv = (m.matmul(x, n) for n in ("qk" if kept.v_in_k else "qkv"))
        out = attend(0, q, *kv)
        if layers in ("shared", "twice"):
            second = m.scale(q, 0.5)
            again = attend(0, second) if layers == "shared" else attend(1, second, *kv)
            out = m.add(m.scale(out, 3.0), again)
        return out

    return Lab(x, arrays, body, [kept, Shared(0) if layers == "shared" else kept])


SHAPES = [
    (1, 1, PagedKV(1, 24, 8)),
    (70, 4, PagedKV(2, 16, 48)),
    (130, 3, PagedKV(1, 40, 7)),
    (129, 2, PagedKV(2, 72, 128)),
    (200, 4, PagedKV(2, 192, 128, window=50)),
    (90, 4, PagedKV(1, 96, 64, v_in_k=True)),
    (150, 6, PagedKV(2, 40, 40, v_in_k=True)),
    (700, 2, PagedKV(1, 36, 20, v_in_k=True)),
    (600, 3, PagedKV(1, 32, 32, window=300, v_in_k=True)),
]


@cache
def oracle(shape: tuple[int, int, PagedKV], cuts: tuple[int, ...], kv_type: KVType) -> Floats:
    """What the reference gives, once for all instruction sets."""
    return attention_lab(*shape).run(ReferenceBackend(), cuts, kv_type)


# On the usual kernels every KV type, on the others the first; the rest of the pairs are long tests.
PAIRS = [
    pytest.param(
        isa,
        kv_type,
        id=f"{isa}-{kv_type.name}",
        marks=() if isa == USUAL or kv_type is CpuBackend.kv_types[0] else pytest.mark.slow,
    )
    for isa in ISAS
    for kv_type in CpuBackend.kv_types
]


@pytest.mark.parametrize(("isa", "kv_type"), PAIRS)
@pytest.mark.parametrize("shape", every(3, SHAPES), ids=str)
def test_keys_and_values_of_any_shape(
    isa: str, shape: tuple[int, int, PagedKV], kv_type: KVType
) -> None:
    rows, heads, kept = shape
    rows = min(rows, 130) if isa == "scalar" else rows
    lab = attention_lab(rows, heads, kept)
    cuts = [512] if rows > 512 else []
    got = lab.run(CpuBackend(threads=2, isa=isa), cuts, kv_type)
    want = oracle((rows, heads, kept), tuple(cuts), kv_type)
    # Scores of standard normal numbers are below 6 sqrt(k_dim) before scaling; their error moves a
    # weight by as much, and weights sum to one over values below 6.
    score = (kept.k_dim + 8) * EPS * 6 * 6
    assert np.abs(got - want).max() <= 6 * (2 * score + (rows + 16) * EPS)
    again = lab.run(
        CpuBackend(threads=3, isa=isa), sorted({rows // 3, rows - 1, *cuts} - {0}), kv_type
    )
    assert again.tobytes() == got.tobytes()


# Of int4 heads are rotated as a whole: values apart are other numbers than a part of the keys.
ALIKE = [t for t in CpuBackend.kv_types if t.name != "int4"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", ALIKE, ids=lambda t: t.name)
@pytest.mark.parametrize("v_dim", [32, 64, 96])
def test_values_in_keys_have_the_bits_of_values_apart(
    isa: str, kv_type: KVType, v_dim: int
) -> None:
    """q8_0 scales groups of 32 alike in both, so that all types read the same numbers."""
    rows = 130 if isa == "scalar" else 600
    inside = attention_lab(rows, 4, PagedKV(1, 96, v_dim, v_in_k=True))
    apart = attention_lab(rows, 4, PagedKV(1, 96, v_dim), layers="prefix")
    cuts = [*range(100, rows - 1, 200), rows - 1]
    backend = CpuBackend(threads=2, isa=isa)
    got, want = inside.run(backend, cuts, kv_type), apart.run(backend, cuts, kv_type)
    assert got.tobytes() == want.tobytes()
    saved = [inside.load(backend, kv_type).state, apart.load(backend, kv_type).state]
    assert saved[0].nbytes < saved[1].nbytes


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kept", [PagedKV(2, 16, 24), PagedKV(1, 40, 32, 70, True)], ids=str)
def test_shared_state_has_the_bits_of_state_kept_twice(isa: str, kept: PagedKV) -> None:
    shared = attention_lab(200, 4, kept, layers="shared", softcap=30.0)
    twice = attention_lab(200, 4, kept, layers="twice", softcap=30.0)
    for cuts in ([], [1, 64, 130, 199]):
        backend = CpuBackend(threads=2, isa=isa)
        assert shared.run(backend, cuts).tobytes() == twice.run(backend, cuts).tobytes()


def by_cuts(runs: StateRuns, text: list[int], ends: list[int]) -> Floats:
    """Logits of all rows, in steps that end at ``ends`` and at the end."""
    sequence = runs.sequence()
    out = []
    for start, end in itertools.pairwise([0, *ends, len(text)]):
        out += runs.run([(sequence, text[start:end])])
    runs.free_all(sequence)
    return np.concatenate(out)


@pytest.mark.parametrize("kv_type", CpuBackend.kv_types, ids=lambda t: t.name)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"] or ISAS)
def test_blocks_that_left_the_window_are_not_seen(isa: str, kv_type: KVType) -> None:
    """Bits of a model with every kind of state: with all blocks kept, and with those that left a
    window filled with NaN and handed out again."""
    model, weights = hybrid_model()
    text = tokens(460)
    whole = by_cuts(
        StateRuns(model, weights, CpuBackend(1, isa), kv_type=kv_type, keeps_all=True), text, []
    )
    assert np.isfinite(whole).all()
    # As few blocks as the largest window and the whole of the first group need.
    runs = StateRuns(model, weights, CpuBackend(2, isa), kv_type=kv_type, blocks=9)
    for seed in range(3):
        ends = sorted(set(np.random.default_rng(seed).integers(1, 460, 6).tolist()))
        ends += [459] if seed == 2 else []
        assert by_cuts(runs, text, sorted(set(ends))).tobytes() == whole.tobytes()
    single = list(range(300, 460))
    assert by_cuts(runs, text, single).tobytes() == whole.tobytes()


def test_the_reference_sees_the_same() -> None:
    model, weights = hybrid_model()
    text = tokens(300)
    whole = by_cuts(StateRuns(model, weights, ReferenceBackend(), keeps_all=True), text, [])
    runs = StateRuns(model, weights, ReferenceBackend(), blocks=7)
    cut = by_cuts(runs, text, [1, 63, 64, 130, 131, 290])
    size = np.abs(whole).max()
    assert np.abs(cut - whole).max() < 1e-4 * size
    rounded = by_cuts(StateRuns(model, weights, ReferenceBackend(F16), keeps_all=True), text, [])
    native = by_cuts(StateRuns(model, weights, CpuBackend(2, USUAL)), text, [100])
    # A key or value that falls to the other neighbour in f16 is off by 2^-11 of itself, and scores
    # move by a few of those.
    assert np.abs(native - rounded).max() < 2**-8 * size


def grow(rng: np.random.Generator, rows: int) -> list[tuple[int, int, list[int]]]:
    """A random tree of spans: (parent, rows of the parent that it follows, tokens)."""
    spans: list[tuple[int, int, list[int]]] = [(-1, 0, tokens(int(rng.integers(1, 8)), 50))]
    while sum(len(t) for _, _, t in spans) < rows:
        parent = int(rng.integers(0, len(spans)))
        after = int(rng.integers(1, len(spans[parent][2]) + 1))
        spans.append((parent, after, tokens(int(rng.integers(1, 6)), 60 + len(spans))))
    return spans


def chain(spans: list[tuple[int, int, list[int]]], number: int) -> list[int]:
    """The tokens of a span's ancestors and its own."""
    parent, after, own = spans[number]
    if parent < 0:
        return own
    before = len(chain(spans, parent)) - len(spans[parent][2]) + after
    return chain(spans, parent)[:before] + own


PAGED = tuple(layer for layer in STATE[2:5]), (*STATE[:1], *STATE[2:5], Shared(1), Shared(3))


@pytest.mark.parametrize("kv_type", CpuBackend.kv_types, ids=lambda t: t.name)
@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_tree_have_the_bits_of_plain_chains(kv_type: KVType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, weights = hybrid_model(PAGED[1])
    # Around the end of a block, and far enough that windows have given blocks back.
    past = [60, 64, 120, 250][seed]
    text = tokens(past)
    tree = grow(rng, 30)
    plain = StateRuns(model, weights, CpuBackend(1, USUAL), kv_type=kv_type)
    runs = StateRuns(model, weights, CpuBackend(1 + seed, USUAL), kv_type=kv_type, blocks=80)
    trunk, other = runs.sequence(), runs.sequence()
    runs.run([(trunk, text[: past // 2]), (other, text[:9])])
    runs.run([(trunk, text[past // 2 :])])
    # Another sequence goes first, so that numbers of rows and spans are not those of the tree.
    work: list[tuple[Branching, list[int]]] = [(other, tokens(5))]
    for number, (parent, _, own) in enumerate(tree):
        length = past + len(chain(tree, number)) - len(own)
        root = trunk if parent < 0 else runs.branch(trunk, length, parent + 1)
        work.append((root, own))
    _, *got = runs.run(work)
    for number, (_, _, own) in enumerate(tree):
        sequence = plain.sequence()
        plain.run([(sequence, text)])
        for token in chain(tree, number):
            (row,) = plain.run([(sequence, [token])])
            last = row
        assert last.tobytes() == got[number][-1:].tobytes(), (number, tree[number])
        assert len(got[number]) == len(own)
        plain.free_all(sequence)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_tree_on_the_reference(seed: int) -> None:
    model, weights = hybrid_model(PAGED[1])
    tree = grow(np.random.default_rng(seed), 20)
    text = tokens(62)
    runs = StateRuns(model, weights, ReferenceBackend(), blocks=60)
    trunk = runs.sequence()
    runs.run([(trunk, text)])
    work = [(trunk, tree[0][2])]
    for number, (parent, _, own) in enumerate(tree[1:], 1):
        length = 62 + len(chain(tree, number)) - len(own)
        work.append((runs.branch(trunk, length, parent), own))
    got = runs.run(work)
    for number in range(len(tree)):
        whole = by_cuts(runs, text + chain(tree, number), [62])[-1]
        assert np.abs(got[number][-1] - whole).max() < 1e-4 * np.abs(whole).max()


def test_steps_that_would_read_or_write_elsewhere_are_refused() -> None:
    model, weights = hybrid_model()
    runs = StateRuns(model, weights, CpuBackend(1, USUAL), blocks=8)
    assert [g.window for g in model.groups] == [0, 150, 70, 0]
    full = np.array([3, 4, 5, 6], np.int32)
    gone = np.array([NO_BLOCK, 4, 5, 6], np.int32)
    slot = np.array([2, 4], np.int32)

    def step(*spans: tuple[int, int, int, tuple[Any, ...]]) -> Step:
        made, row = [], 0
        for past, rows, parent, tables in spans:
            made.append(Span(row, rows, past, tables, parent))
            row += rows
        positions = [np.arange(s.past, s.past + s.rows, dtype=np.int32) for s in made]
        ids = np.zeros(row, np.int32)
        return Step(ids, np.concatenate(positions), tuple(made), ids[:1])

    fine = (full, full, gone, slot)
    other = (full + 1, full + 1, full + 1, slot + 1)
    # The first row of a span at 133 sees position 64 through a window of 70, at 132 position 63.
    runs._logits(step((133, 2, -1, fine)))
    for bad, message in [
        ((132, 2, -1, fine), "KV block out of range"),
        ((133, 2, -1, (gone, full, gone, slot)), "KV block out of range"),
        ((200, 2, -1, (full, full, full - 5, slot)), "KV block out of range"),
        ((133, 2, -1, (full, full, full + 3, slot)), "KV block out of range"),
        ((133, 2, -1, (full, full, gone, slot + 4)), "slot out of range"),
        ((133, 2, -1, (full, full, gone, slot - 3)), "slot out of range"),
        ((133, 2, -1, fine[:3]), "a table for each group"),
        ((300, 2, -1, fine), "block table too short"),
    ]:
        with pytest.raises(ValueError, match=message):
            runs._logits(step(bad))
    with pytest.raises(ValueError, match="a slot that is written"):
        runs._logits(step((133, 2, -1, fine), (133, 2, -1, (full, full, gone, slot))))
    with pytest.raises(ValueError, match="recurrent state has no branches"):
        runs._logits(step((133, 2, -1, fine), (134, 1, 0, other)))
    paged, arrays = hybrid_model([PagedKV(1, 8, 8)])
    tree = StateRuns(paged, arrays, CpuBackend(1, USUAL), blocks=8)
    one, two = (full,), (full - 3,)
    for past, parent, message in [
        (10, 1, "before its parent"),
        (10, 0, "must follow a row of its parent"),
        (13, 0, "must follow a row of its parent"),
    ]:
        with pytest.raises(ValueError, match=message):
            tree._logits(step((10, 2, -1, one), (past, 1, parent, two)))
    tree._logits(step((10, 2, -1, one), (12, 1, 0, two)))


def conv_lab(rows: int, width: int, taps: int) -> Lab:
    arrays = {"w": draw(width, taps, seed=1), "norm": np.ones(width, np.float32)}
    # Behind a norm, so that x is an activation in a place of its own, and before one.
    return Lab(
        draw(rows, width),
        arrays,
        lambda m, x: m.scale(m.short_conv(m.scale(x, 2.0), "w", layer=0), 0.5),
        [Recurrent(((taps - 1, width),))],
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("rows", "width", "taps"), [(1, 7, 2), (5, 16, 4), (40, 100, 3), (70, 600, 4), (9, 33, 12)]
)
def test_short_conv(isa: str, rows: int, width: int, taps: int) -> None:
    lab = conv_lab(rows, width, taps)
    got = lab.run(CpuBackend(threads=2, isa=isa))
    x = np.vstack([np.zeros((taps - 1, width)), 2.0 * lab.x])
    w = lab.weights.arrays["w"].astype(np.float64)
    exact = sum(0.5 * w[:, j] * x[j : j + rows] for j in range(taps))
    size = sum(np.abs(0.5 * w[:, j] * x[j : j + rows]) for j in range(taps))
    assert (np.abs(got - exact) <= (taps + 2) * EPS * size).all()
    want = lab.run(ReferenceBackend())
    assert (np.abs(want - exact) <= (taps + 2) * EPS * size).all()
    if isa == "scalar":  # which multiplies and adds as numpy does
        assert got.tobytes() == want.tobytes()
    assert lab.run(ReferenceBackend(), sorted({1, rows // 2, rows - 1} - {0, rows})).tobytes() == (
        want.tobytes()
    )


@pytest.mark.parametrize("isa", ISAS)
def test_the_row_before(isa: str) -> None:
    """Of the sequence, whatever steps it is cut into: bits, as nothing is computed."""
    lab = Lab(
        draw(40, 21),
        {},
        lambda m, x: m.scale(m.previous(m.scale(x, 2.0), layer=0), 0.5),
        [Recurrent(((1, 21),))],
    )
    want = np.vstack([np.zeros((1, 21), np.float32), lab.x[:-1]])
    for backend in (ReferenceBackend(), CpuBackend(threads=2, isa=isa)):
        for cuts in ([], [1, 17, 39], list(range(1, 40))):
            assert np.array_equal(lab.run(backend, cuts), want)


@pytest.mark.parametrize("isa", ISAS)
def test_taps_that_are_rows_apart(isa: str) -> None:
    """Those of a convolution with zeros between them, with its bits."""
    taps, apart = draw(40, 3, seed=1), np.zeros((40, 7), np.float32)
    apart[:, ::3] = taps
    labs = [
        Lab(
            draw(50, 40),
            {"w": weight},
            lambda m, x, d=dilation: m.short_conv(m.scale(x, 2.0), "w", layer=0, dilation=d),
            [Recurrent(((6, 40),))],
        )
        for weight, dilation in ((taps, 3), (apart, 1))
    ]
    for backend in (ReferenceBackend(), CpuBackend(threads=2, isa=isa)):
        want = labs[1].run(backend)
        for cuts in ([], [1, 2, 7, 30], list(range(1, 50))):
            assert labs[0].run(backend, cuts).tobytes() == want.tobytes()


def ngrams_lab(rows: int, before: int) -> tuple[Lab, Floats]:
    """Tokens 0, 1, .. of which one is an end, and the rows by definition. Hashes have 64 bits."""
    multipliers = [2**63 + 11, 5**20 + 1, 3, 7][: before + 1]
    starts, sizes, end = [0, 9, 20, 31, 44, 61][: 2 * before], [9, 11, 11, 13, 17, 3], 23
    table = draw(64, 5, seed=4)
    lab = Lab(
        draw(rows, 8),
        {"table": table},
        lambda m, x: m.ngrams(
            *("table",),
            layer=0,
            multipliers=multipliers,
            starts=starts,
            sizes=sizes[: 2 * before],
            end=end,
        ),
        [Recurrent(((before,),))],
    )
    want = []
    for row in range(rows):
        seen = [row]
        while len(seen) <= before:
            earlier = row - len(seen)
            ended = earlier < 0 or end in seen[1:] or earlier == end
            seen.append(end if ended else earlier)
        for n in range(1, before + 1):
            mixed = 0
            for token, multiplier in zip(seen[: n + 1], multipliers, strict=False):
                mixed ^= token * multiplier % 2**64
            want += [table[starts[i] + mixed % sizes[i]] for i in (2 * n - 2, 2 * n - 1)]
    return lab, np.stack(want).reshape(rows, -1)


@pytest.mark.parametrize("before", [1, 2, 3])
def test_rows_of_a_table_by_hashes_of_tokens(before: int) -> None:
    """As the definition says, whatever steps a sequence is cut into and whoever shares them."""
    lab, want = ngrams_lab(60, before)
    for backend in (ReferenceBackend(), CpuBackend(threads=2)):
        for cuts in ([], [1, 2, 22, 24, 40], list(range(1, 60))):
            assert np.array_equal(lab.run(backend, cuts), want)
    lab, want = ngrams_lab(130, before)
    for got in run_mixed(lab, CpuBackend(3), np.random.default_rng(0)):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("width", [33, 600])
def test_bits_of_short_conv_depend_on_the_sequence_alone(width: int) -> None:
    """Random cuts of sequences that share steps, on every instruction set."""
    rng = np.random.default_rng(0)
    lab = conv_lab(130, width, 4)
    whole = {isa: lab.run(CpuBackend(1, isa)) for isa in ISAS}
    # All but scalar fuse.
    assert len({whole[isa].tobytes() for isa in ISAS if isa != "scalar"}) <= 1
    for isa, threads in itertools.product(ISAS, (1, 3)):
        for got in run_mixed(lab, CpuBackend(threads, isa), rng):
            assert got.tobytes() == whole[isa].tobytes()
