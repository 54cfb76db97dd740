"""The experts Op: the native nodes against the reference, and what its bits may not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.reference import ReferenceBackend
from strata.backends.reference.experts import route
from strata.program import Builder, ProgramError, Weight
from strata.program.ops.experts import CLAMPS, EXPERT_DEFAULTS, SCORINGS
from strata.quant import BlockType, by_name, dequantize
from support.native_weights import ALL, file_rows
from support.small_programs import Floats, Lab, MemoryWeights

ISAS = available_isas()
EPS = 2.0**-24


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def arrays(experts: int, width: int, ffn: int, *, gate: bool = True) -> dict[str, Floats]:
    """Matrices of experts and the router's, by the names of the Op's operands."""
    made = {
        "router": draw(experts, width, seed=1),
        "up": draw(experts, ffn, width, seed=2, scale=width**-0.5),
        "down": draw(experts, width, ffn, seed=3, scale=ffn**-0.5),
    }
    if gate:
        made["gate"] = draw(experts, ffn, width, seed=4, scale=width**-0.5)
    return made


def extras(experts: int, width: int, ffn: int) -> dict[str, Floats]:
    """All biases, scales and the selection's bias."""
    return {
        "gate_bias": draw(experts, ffn, seed=5),
        "up_bias": draw(experts, ffn, seed=6),
        "down_bias": draw(experts, width, seed=7),
        "gate_scale": draw(experts, seed=8),
        "up_scale": draw(experts, seed=9),
        "down_scale": draw(experts, seed=10),
        "selection": draw(experts, seed=11),
    }


def body(named: dict[str, Floats], **attrs: Any) -> Any:
    options = {n: n for n in named if n not in ("router", "up", "down")}

    def build(b: Builder, x: str) -> str:
        return b.experts(x, b.matmul(x, "router"), "up", "down", **options, **attrs)

    return build


VARIATIONS: list[dict[str, Any]] = [
    *({"top_k": 3, "scoring": s} for s in SCORINGS),
    {"top_k": 3, "renormalise": True, "scale": 2.5},
    {"top_k": 3, "scoring": "none", "softmax_chosen": True},
    {"top_k": 2, "scoring": "sigmoid", "select": "logits", "weigh_input": True},
    {"top_k": 2, "scoring": "sigmoid", "groups": 4, "groups_kept": 2, "renormalise": True},
    {"top_k": 2, "groups": 4, "groups_kept": 1, "group_score": "max"},
    *({"top_k": 2, "clamp": c, "limit": 0.7} for c in CLAMPS[1:]),
    {"top_k": 2, "clamp": "situ", "limit": 0.7, "up_limit": 0.5},
    {"top_k": 2, "function": "gelu_tanh"},
    {"top_k": 2, "scoring": "sparsemixer", "jitter": 0.5},
    {"top_k": 3, "shared_by": 2, "renormalise": True},
    {"top_k": 4, "shared_by": 4, "scoring": "sigmoid"},
    {"top_k": 8},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("more", [False, True], ids=["plain", "extras"])
@pytest.mark.parametrize("attrs", VARIATIONS, ids=str)
def test_native_is_the_reference(attrs: dict[str, Any], more: bool, isa: str) -> None:
    experts, width, ffn = 8, 40, 24
    named = arrays(experts, width, ffn) | (extras(experts, width, ffn) if more else {})
    choices = experts * attrs.get("shared_by", 1)
    named["router"] = draw(choices, width, seed=1)
    if more:
        named["selection"] = draw(choices, seed=11)
    if attrs.get("scoring") == "sparsemixer":
        named.pop("selection", None)
    lab = Lab(draw(9, width), named, body(named, **attrs))
    got, want = lab.run(CpuBackend(threads=2, isa=isa)), lab.run(ReferenceBackend())
    # Two products of `width` and `ffn` terms of about 1 each, up to 8 experts of such outputs.
    most = 8 * (width + ffn + 16) * EPS * max(1.0, float(np.abs(want).max()))
    assert np.abs(got - want).max() <= most


@pytest.mark.parametrize("function", ["relu2", "silu"])
def test_experts_without_a_gate(function: str) -> None:
    named = arrays(4, 32, 48, gate=False)
    lab = Lab(draw(5, 32), named, body(named, top_k=2, function=function))
    got, want = lab.run(CpuBackend(threads=2)), lab.run(ReferenceBackend())
    assert np.allclose(got, want, rtol=0, atol=200 * EPS * np.abs(want).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 2, 3, 70])
def test_rows_threads_and_steps_change_no_bit(rows: int, isa: str) -> None:
    """Many rows of few experts: blocks of rows end within an expert."""
    named = arrays(3, 64, 56)
    lab = Lab(draw(rows, 64), named, body(named, top_k=2))
    want = lab.run(CpuBackend(threads=1, isa=isa))
    for threads in (2, 3, 4):
        assert np.array_equal(lab.run(CpuBackend(threads=threads, isa=isa)), want)
    loaded = lab.load(CpuBackend(threads=2, isa=isa))
    assert np.array_equal(loaded.rows(range(1, rows)), want)
    assert np.array_equal(lab.run(CpuBackend(threads=2, isa=isa), (rows // 2,) * (rows > 1)), want)


class BlockWeights(MemoryWeights):
    """Matrices in a block format, given as their bytes; what is not given is F32."""

    def __init__(self, arrays: dict[str, Floats], kind: BlockType, raw: dict[str, Any]) -> None:
        super().__init__(arrays)
        self._kind, self._raw = kind, raw

    def type(self, weight: Weight) -> BlockType:
        return self._kind if weight.source in self._raw else by_name("F32")

    def raw(self, weight: Weight) -> NDArray[np.uint8]:
        found = self._raw.get(weight.source)
        return super().raw(weight) if found is None else found

    def floats(self, weight: Weight) -> Floats:
        if weight.source not in self._raw:
            return super().floats(weight)
        return dequantize(self._kind, self._raw[weight.source], weight.shape)


def block_lab(
    name: str, experts: int, width: int, ffn: int, rows: int, chosen: int
) -> tuple[Lab, Lab]:
    """A mixture that chooses one expert for every row, and that expert by itself."""
    kind = by_name(name)
    shapes = {"gate": (ffn, width), "up": (ffn, width), "down": (width, ffn)}
    each = {
        part: [file_rows(name, *shape, seed=10 * number + e) for e in range(experts)]
        for number, (part, shape) in enumerate(shapes.items())
    }
    selection = np.where(np.arange(experts) == chosen, 9, 0).astype(np.float32)
    plain = {"router": draw(experts, width), "selection": selection}
    x = draw(rows, width, scale=0.1)
    empty = {part: np.zeros((experts, *shape), np.float32) for part, shape in shapes.items()}
    mixed = Lab(
        x, {**plain, **empty}, body({**plain, **empty}, top_k=1, renormalise=True, least_sum=0.0)
    )
    raw = {part: np.concatenate(all_) for part, all_ in each.items()}
    mixed.weights = BlockWeights({**mixed.weights.arrays}, kind, raw)

    def alone(b: Builder, x: str) -> str:
        gate, up = b.matmul(x, "gate"), b.matmul(x, "up")
        return b.matmul(b.glu(gate, up, "silu"), "down")

    one = Lab(x, {part: np.zeros(shape, np.float32) for part, shape in shapes.items()}, alone)
    one.weights = BlockWeights(
        one.weights.arrays, kind, {part: all_[chosen] for part, all_ in each.items()}
    )
    return mixed, one


@pytest.mark.parametrize("name", ALL)
def test_an_expert_has_the_bits_of_a_plain_feed_forward(name: str) -> None:
    for isa in ISAS:
        mixed, one = block_lab(name, 3, 256, 512, 5, chosen=1)
        backend = CpuBackend(threads=2, isa=isa)
        want = one.run(backend)
        got = mixed.run(CpuBackend(threads=3, isa=isa))
        assert np.abs(want).max() > 0
        assert np.array_equal(got, want)


def test_experts_that_end_within_a_panel() -> None:
    mixed, one = block_lab("Q8_0", 3, 96, 32, 4, chosen=2)
    assert np.array_equal(mixed.run(CpuBackend(threads=2)), one.run(CpuBackend(threads=2)))
    named = arrays(5, 36, 20)
    lab = Lab(draw(6, 36), named, body(named, top_k=2))
    got, want = lab.run(CpuBackend(threads=2)), lab.run(ReferenceBackend())
    assert np.allclose(got, want, rtol=0, atol=200 * EPS * np.abs(want).max())


def test_of_equal_scores_the_lowest_index_is_chosen() -> None:
    a = {**EXPERT_DEFAULTS, "top_k": 2}
    weights = route(np.array([[1, 3, 3, 3], [2, 2, 2, 2]], np.float32), None, a)
    assert [list(np.flatnonzero(row)) for row in weights] == [[1, 2], [0, 1]]
    named = arrays(4, 16, 16)
    named["router"][:] = named["router"][:1]
    lab = Lab(draw(3, 16), named, body(named, top_k=2))
    got, want = lab.run(CpuBackend(threads=1)), lab.run(ReferenceBackend())
    assert np.allclose(got, want, rtol=0, atol=200 * EPS * np.abs(want).max())


def test_logits_that_are_no_numbers_choose_experts_all_the_same() -> None:
    named = arrays(4, 16, 16)
    named["router"][1] = np.nan
    lab = Lab(draw(3, 16), named, body(named, top_k=3, scoring="sigmoid"))
    assert lab.run(CpuBackend(threads=1)).shape == (3, 16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"top_k": 9}, "9 of 8"),
        ({"top_k": 2, "groups": 3}, "1 of 3 groups of 8"),
        ({"top_k": 4, "groups": 4, "groups_kept": 1}, "fewer than 4"),
        ({"top_k": 2, "scoring": "best"}, "unknown scoring 'best'"),
        ({"top_k": 2, "scoring": "sparsemixer", "groups": 2}, "by logits alone"),
        ({"top_k": 2, "clamp": "oai", "function": "relu"}, "only gates with silu"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], says: str) -> None:
    named = arrays(8, 16, 16)
    with pytest.raises(ProgramError, match=says):
        Lab(draw(1, 16), named, body(named, **change))


def test_matrices_of_other_shapes_are_refused() -> None:
    named = arrays(8, 16, 16)
    named["down"] = draw(8, 16, 32)
    with pytest.raises(ProgramError, match="'down' has shape"):
        Lab(draw(1, 16), named, body(named, top_k=2))
