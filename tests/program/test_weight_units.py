"""Units of weights: which matrices stay or stream together, and how they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

import make_tiny_models
from strata.formats import open_model
from strata.models import build_model
from strata.program import SIGNATURES, Builder, Op, Segment, Signature, Weight, reads
from strata.program.ops import float_operands, infer_shape
from support.described import model

SHAPES = {"norm": (8,), "experts": (6, 8, 8)}


def builder(name: str = "layer.7") -> Builder:
    def weight(name: str) -> Weight:
        return Weight(name, SHAPES.get(name, (8, 8)), name)

    return Builder(name, weight, {"x": ("T", 8)})


def units(segment: Segment) -> list[tuple[str, str, list[str]]]:
    assert {u.segment for u in segment.units} <= {segment.name}
    return [(u.name, u.reads, [w.name for w in u.weights]) for u in segment.units]


def test_what_is_marked_is_apart_from_the_rest() -> None:
    b = builder()
    with b.unit("attention"):
        x = b.matmul(b.rms_norm("x", "norm", 1e-5), "q")
    with b.unit("ffn"):
        x = b.matmul(x, "up")
    with b.unit("attention"):
        x = b.matmul(x, "o")
    segment = b.build(x=b.matmul(x, "last"))
    assert units(segment) == [
        ("layer.7.attention", "all", ["q", "o"]),
        ("layer.7.ffn", "all", ["up"]),
        ("layer.7", "all", ["last"]),
    ]


def test_tables_are_apart_from_what_is_multiplied() -> None:
    b = builder("embed")
    x = b.matmul(b.embed("table"), "wide")
    assert units(b.build(x=b.add_positions(x, "positions"))) == [
        ("embed", "rows", ["table", "positions"]),
        ("embed.all", "all", ["wide"]),
    ]


def test_of_a_table_that_is_multiplied_as_well_all_is_read() -> None:
    b = builder()
    assert units(b.build(x=b.matmul(b.embed("table"), "table"))) == [("layer.7", "all", ["table"])]


def test_vectors_are_in_no_unit() -> None:
    b = builder()
    assert b.build(x=b.rms_norm("x", "norm", 1e-5)).units == ()


def test_an_op_says_how_it_reads_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    signature = Signature(
        ("x", "experts", "bias?"), (), lambda v, a: v[0].shape, lambda v, a, r, c: 0,
        reads={"experts": "routed"},
    )  # fmt: skip
    monkeypatch.setitem(SIGNATURES, "experts", signature)  # type: ignore[misc]
    op = Op("experts", ("x", "w"), "y")
    infer_shape(op, list(builder()._values.values()) * 2)
    assert reads(op) == {"x": "all", "w": "routed"}
    b = builder()
    (unit,) = b.build(x=b._emit("experts", ["x", b._weight("experts")])).units
    assert (unit.reads, unit.experts) == ("routed", 6)


ONE_PART = ("mamba", "mamba2", "nemotron_h")


@pytest.mark.parametrize("name", make_tiny_models.names())
def test_every_matrix_of_every_family_is_in_one_unit(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_directory(tmp_path, golden)) as file:
        built = build_model(file, golden.context)
    names = [u.name for segment in built.segments for u in segment.units]
    assert len(set(names)) == len(names)
    for segment in built.segments:
        inside = [w.name for unit in segment.units for w in unit.weights]
        floats = float_operands(segment.program)
        matrices = {w.name for w in segment.weights if len(w.shape) == 2} - floats
        assert sorted(inside) == sorted(matrices)
        if segment.name.startswith("layer"):
            # Something that goes along the sequence, then what works on rows; or one of them.
            parts = [u.name.removeprefix(f"{segment.name}.") for u in segment.units]
            assert parts in (
                *([along, "ffn"] for along in ("attention", "ssm", "conv")),
                *([part] for part in ("attention", "ssm", "ffn") if name in ONE_PART),
            )


def test_a_unit_is_named_after_its_segment_where_it_has_no_other() -> None:
    m = model("llama-3.2-1b")
    assert [u.name for u in m.units[:3]] == ["embed", "layer.0.attention", "layer.0.ffn"]
    assert [u.name for u in m.units[-2:]] == ["layer.15.ffn", "head"]
    assert [u.reads for u in m.units[:2]] == ["rows", "all"]
