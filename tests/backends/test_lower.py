"""Lowering: what is fused, and what must not be."""

from __future__ import annotations

import pytest

from strata.backends.cpu.arena import ArenaLayout
from strata.backends.cpu.lower import Lowered, lower
from strata.backends.cpu.placement import Placement
from strata.program import Builder, Program, Weight


def weight(name: str) -> Weight:
    return Weight(name, (8,) if name.startswith("norm") else (8, 8), name)


def lowered(body, quantised: bool = True) -> tuple[Program, Lowered]:  # type: ignore[no-untyped-def]
    b = Builder("layer", weight, {"x": ("T", 8)})
    segment = b.build(x=body(b, "x"))
    program = segment.program
    weights = {
        n: "q8" if quantised else "f32" for n, v in program.values.items() if v.role == "weight"
    }
    return program, lower(segment, weights)


def kinds(result: Lowered) -> list[str]:
    return [n.op.kind for n in result.nodes]


def test_a_layer_becomes_few_nodes() -> None:
    def body(b: Builder, x: str) -> str:
        h = b.rms_norm(x, "norm1", 1e-5)
        q, k, v = (b.matmul(h, n) for n in ("wq", "wk", "wv"))
        a = b.attention(q, k, v, layer=0, heads=1, kv_heads=1, k_dim=8, v_dim=8, scale=1.0)
        x = b.add(x, b.matmul(a, "wo"))
        h = b.rms_norm(x, "norm2", 1e-5)
        return b.add(x, b.matmul(b.glu(b.matmul(h, "g"), b.matmul(h, "u"), "silu"), "d"))

    _, result = lowered(body)
    assert kinds(result) == [
        *("rms_norm", "matmul", "attention", "matmul"),
        *("rms_norm", "matmul", "matmul"),
    ]
    assert [len(n.products) for n in result.nodes] == [0, 3, 0, 1, 0, 2, 1]
    assert result.nodes[3].products[0].residual == "x"
    assert result.nodes[5].glu is not None
    # Norms, attention and glu hand over int8 only where nobody reads the floats.
    assert {"rms_norm.0", "attention.4", "glu.10"} <= result.q8
    assert "rms_norm.0" not in result.f32


@pytest.mark.parametrize("width", [4, 8, 40])
def test_what_comes_in_place_of_the_hidden_state_does_not_overlap_it(width: int) -> None:
    """It is copied there by several threads, in any order of its rows."""
    b = Builder("layer", lambda name: Weight(name, (width, 8), name), {"x": ("T", 8)})
    segment = b.build(y=b.matmul("x", "w"))
    program, rows = segment.program, 5
    place = Placement(program, lower(segment, {"w": "f32"}), lambda dim: rows, None)
    first, _ = place.places[program.outputs[0]]
    assert first >= 4 * rows * max(width, 8)
    assert place.layout.size >= first + 4 * rows * width


def test_what_a_product_adds_to_is_not_taken_over_while_others_read_it() -> None:
    """Of several columns at once some are written, and others read."""

    def own(b: Builder, x: str) -> str:
        return b.add(b.matmul(x, "w"), x)

    def both(b: Builder, x: str) -> str:
        h = b.rms_norm(x, "norm1", 1e-5)
        return b.add(b.add(x, b.matmul(h, "w")), b.add(x, b.matmul(h, "v")))

    def alone(b: Builder, x: str) -> str:
        return b.add(x, b.matmul(b.rms_norm(x, "norm1", 1e-5), "w"))

    for body, over in ((own, False), (both, False), (alone, True)):
        program, result = lowered(body, quantised=False)
        place = Placement(program, result, lambda dim: 5, None)
        node = next(n for n in result.nodes if n.products)
        assert [p.residual for p in node.products] == ["x"] * len(node.products)
        assert [place.places[p.output][0] == 0 for p in node.products] == (
            [over] * len(node.products)
        )


def test_a_product_that_others_read_keeps_its_value() -> None:
    def body(b: Builder, x: str) -> str:
        y = b.matmul(x, "w")
        return b.add(b.add(x, y), y)

    _, result = lowered(body)
    assert kinds(result) == ["matmul", "add", "add"]


def test_an_add_of_something_later_is_not_folded() -> None:
    def body(b: Builder, x: str) -> str:
        y = b.matmul(x, "w")
        late = b.scale(y, 2.0)
        z = b.matmul(x, "v")
        return b.add(z, b.activation(late, "relu"))

    _, result = lowered(body)
    # z's product may take in `relu`, which is ready only if it was made before z: it was not.
    assert kinds(result) == ["matmul", "scale", "matmul", "activation", "add"]


def test_only_one_add_goes_into_a_product() -> None:
    def body(b: Builder, x: str) -> str:
        early = b.scale(x, 2.0)
        return b.add(b.add(b.matmul(x, "w"), early), x)

    _, result = lowered(body)
    assert kinds(result) == ["scale", "matmul", "add"]
    assert result.nodes[1].products[0].residual is not None


def test_products_of_different_inputs_stay_apart() -> None:
    def body(b: Builder, x: str) -> str:
        return b.matmul(b.matmul(x, "w"), "v")

    _, result = lowered(body)
    assert [len(n.products) for n in result.nodes] == [1, 1]


def test_products_of_weights_from_two_units_stay_apart() -> None:
    def body(b: Builder, x: str) -> str:
        with b.unit("one"):
            y = b.matmul(x, "w")
        z = b.matmul(x, "v")
        return b.add(b.scale(y, 2.0), z)

    _, result = lowered(body)
    assert [len(n.products) for n in result.nodes] == [1, 1, 0, 0]


def test_a_product_that_needs_the_one_before_is_not_grouped_with_it() -> None:
    def body(b: Builder, x: str) -> str:
        y = b.matmul(x, "w")
        return b.add(b.matmul(x, "v"), y)

    _, result = lowered(body)
    assert [len(n.products) for n in result.nodes] == [1, 1]
    assert result.nodes[1].products[0].residual == result.nodes[0].products[0].output


@pytest.mark.parametrize("quantised", [True, False])
def test_forms_follow_the_weights(quantised: bool) -> None:
    _, result = lowered(lambda b, x: b.matmul(b.rms_norm(x, "norm", 1e-5), "w"), quantised)
    assert ("rms_norm.0" in result.q8) == quantised
    assert ("rms_norm.0" in result.f32) != quantised


def test_arena_ranges_never_overlap() -> None:
    layout = ArenaLayout()
    a, b = layout.take(100), layout.take(64)
    assert (a, b) == (0, 128)
    layout.give(a)
    assert layout.take(65) == 0
    assert layout.take(64) == 192
    assert layout.size == 256


def test_every_op_is_in_one_node() -> None:
    def body(b: Builder, x: str) -> str:
        h = b.rms_norm(x, "norm1", 1e-5)
        x = b.add(x, b.matmul(h, "wo"))
        return b.add(x, b.matmul(b.glu(b.matmul(x, "g"), b.matmul(x, "u"), "silu"), "d"))

    program, result = lowered(body)
    assert [len(node.ops) for node in result.nodes] == [1, 2, 3, 2]
    assert sorted(op.output for node in result.nodes for op in node.ops) == sorted(
        op.output for op in program.ops
    )
