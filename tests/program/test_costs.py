"""Costs of Ops against numbers worked out by hand."""

from __future__ import annotations

import pytest

from strata.program import Builder, Cost, Segment, StepSize, Weight, op_cost, program_cost

# 3 tokens, 2 rows of logits, 100 positions attended, 2 bytes an element of KV.
LOAD = StepSize(tokens=3, logit_rows=2, context=100)
# An 8 x 8 matrix in a format of 5 bits a weight, a norm of floats, a table of 10 rows of 4 bytes.
STORED = {"matrix": 40, "norm": 32, "table": 40, "taps": 96}
SHAPES = {"matrix": (8, 8), "norm": (8,), "table": (10, 8), "taps": (8, 3)}


def costs(make: object) -> Cost:
    """Cost of the last Op of a Segment."""
    b = Builder("s", lambda name: Weight(name, SHAPES[name], name), {"x": ("T", 8)})
    segment: Segment = b.build(out=make(b))  # type: ignore[operator]
    return op_cost(segment.program.ops[-1], segment.program, LOAD, STORED)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        # 2 * 3 * 8 * 8 multiplications and additions; 3 rows of 8 floats in, as many out.
        (lambda b: b.matmul("x", "matrix"), Cost(384, 40, 192)),
        # Only the 2 selected rows are multiplied.
        (lambda b: b.matmul(b.select("x"), "matrix"), Cost(256, 40, 128)),
        (lambda b: b.select("x"), Cost(0, 0, 128)),
        # One row of the table a token: 3 * 4 bytes.
        (lambda b: b.embed("table"), Cost(24, 12, 96)),
        (lambda b: b.add_positions("x", "table"), Cost(24, 12, 192)),
        (lambda b: b.rms_norm("x", "norm", 1e-5), Cost(96, 32, 192)),
        (lambda b: b.add("x", "x"), Cost(24, 0, 288)),
        # 4 * 3 rows * 100 keys * 8; q, k, v in and one out; k and v of 100 positions read and 3
        # written, each 2 * 8 elements of 2 bytes.
        (
            lambda b: b.attention(
                "x", "x", "x", layer=0, heads=2, kv_heads=2, k_dim=4, v_dim=4, scale=1.0
            ),
            Cost(9600, 0, 384, 103 * 32),
        ),
        # A window of 10 keys.
        (
            lambda b: b.attention(
                "x", "x", "x", layer=0, heads=2, kv_heads=2, k_dim=4, v_dim=4, scale=1.0, window=10
            ),
            Cost(960, 0, 384, 13 * 32),
        ),
        # 2 heads with keys of 4 and values of 2, which are part of them: 2 * 3 rows * 100 keys *
        # 2 * (4 + 2); q and k in and 4 floats a row out; keys of 2 * 4 elements of 2 bytes.
        (
            lambda b: b.attention(
                "x", "x", layer=0, heads=2, kv_heads=2, k_dim=4, v_dim=2, scale=1.0
            ),
            Cost(7200, 0, 240, 103 * 16),
        ),
        # What another layer keeps is read and not written.
        (
            lambda b: b.attention("x", layer=0, heads=2, kv_heads=1, k_dim=4, v_dim=2, scale=1.0),
            Cost(7200, 0, 144, 100 * 12),
        ),
        # 2 * 3 rows * 8 * 3 taps; two rows of 8 floats of state read and written.
        (lambda b: b.short_conv("x", "taps", layer=0), Cost(144, 96, 192, 128)),
        # 3 rows of 2 lookups, each a row of 8 of the table; one token kept.
        (
            lambda b: b.ngrams(
                "table", layer=0, multipliers=[1, 2], starts=[0, 1], sizes=[1, 1], end=0
            ),
            Cost(24, 24, 192, 8),
        ),
        # A state of 8 columns of 8, read and written: 6 * 3 rows * 64; x, dt, b, c in and one out.
        (
            lambda b: b.ssm_scan(
                *("x", "x", "x", "x"), a="norm", d="norm", layer=0, groups=1, states=8
            ),
            Cost(1152, 64, 480, 512),
        ),
        # Two heads of 4 by 4.
        (
            lambda b: b.wkv7(*("x", "x", "x", "x", "x", "x"), layer=0, heads=2),
            Cost(864, 0, 672, 256),
        ),
    ],
)
def test_one_op(make: object, expected: Cost) -> None:
    assert costs(make) == expected


def test_a_program_is_the_sum_of_its_ops() -> None:
    b = Builder("s", lambda name: Weight(name, SHAPES[name], name), {"x": ("T", 8)})
    h = b.rms_norm("x", "norm", 1e-5)
    program = b.build(x=b.add("x", b.matmul(h, "matrix"))).program
    found = program_cost(program, LOAD, STORED)
    assert found == Cost(96 + 384 + 24, 32 + 40, 192 + 192 + 288)
    assert found.bytes == 72 + 672
