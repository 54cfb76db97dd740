"""Shape rules: a Program that makes no sense is refused while it is built, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from strata.program import Builder, ProgramError, Weight

WEIGHTS = {
    "table": (10, 8),
    "square": (8, 8),
    "tall": (24, 8),
    "norm": (8,),
    "head_norm": (4,),
    "odd": (3,),
    "bias24": (24,),
    "factors": (2,),
    "cube": (4, 8, 8),
    "narrow": (10, 4),
    "taps": (8, 4),
    "one_tap": (8, 1),
}


def source(name: str) -> Weight:
    return Weight(name, WEIGHTS[name], name)


def builder() -> Builder:
    return Builder("layer.7", source, {"x": ("T", 8)})


def shape(b: Builder, value: str) -> tuple[object, ...]:
    """The shape that a built Program records for a value."""
    return b.build(out=value).program.values[value].shape


def attention(b: Builder, *operands: str, **changed: int) -> str:
    settings = {"layer": 0, "heads": 2, "kv_heads": 2, "k_dim": 4, "v_dim": 4} | changed
    return b.attention(*operands, scale=0.5, **settings)


def ssm_scan(b: Builder, a: str, *, states: int) -> str:
    return b.ssm_scan("x", "x", "x", "x", a=a, d="norm", layer=0, groups=1, states=states)


def gated_delta(b: Builder, *, heads: int, key_heads: int) -> str:
    return b.gated_delta("x", "x", "x", "x", "x", layer=0, heads=heads, key_heads=key_heads)


def ngrams(b: Builder, table: str = "square", **changed: Any) -> str:
    how = {"multipliers": (3, 5, 7), "starts": (0, 2, 4, 6), "sizes": (2, 2, 2, 2), "end": 0}
    return b.ngrams(table, layer=0, **{**how, **changed})


SHAPES: list[tuple[Callable[[Builder], str], tuple[object, ...]]] = [
    (lambda b: b.embed("table", 2.0), ("T", 8)),
    (lambda b: b.add_positions("x", "table"), ("T", 8)),
    (lambda b: b.rms_norm("x", "norm", 1e-5), ("T", 8)),
    (lambda b: b.rms_norm("x", "head_norm", 1e-5), ("T", 8)),
    (lambda b: b.layer_norm("x", "norm", "norm", 1e-5), ("T", 8)),
    (lambda b: b.matmul("x", "tall", "bias24"), ("T", 24)),
    (lambda b: b.matmul(b.select("x"), "tall"), ("R", 24)),
    (lambda b: b.rope("x", head_dim=4, inv_freq=[1, 0.1], style="neox"), ("T", 8)),
    (
        lambda b: b.rope("x", head_dim=4, inv_freq=[1, 1], style="neox", factors="factors"),
        ("T", 8),
    ),
    (lambda b: attention(b, "x", "x", "x"), ("T", 8)),
    (lambda b: attention(b, b.matmul("x", "tall"), "x", "x", heads=6), ("T", 24)),
    (
        lambda b: attention(
            b, b.matmul("x", "tall"), "x", "x", heads=3, kv_heads=1, k_dim=8, v_dim=8
        ),
        ("T", 24),
    ),
    (lambda b: attention(b, "x", "x", b.matmul("x", "tall"), v_dim=12), ("T", 24)),
    (lambda b: attention(b, "x", "x", v_dim=3), ("T", 6)),
    (lambda b: attention(b, "x", v_dim=12), ("T", 24)),
    (lambda b: b.short_conv("x", "taps", layer=0), ("T", 8)),
    (lambda b: b.short_conv("x", "taps", "norm", layer=0), ("T", 8)),
    (lambda b: b.short_conv("x", "taps", layer=0, dilation=3), ("T", 8)),
    (lambda b: ngrams(b), ("T", 4 * 8)),
    (lambda b: ssm_scan(b, "norm", states=8), ("T", 8)),
    (lambda b: ssm_scan(b, "square", states=8), ("T", 8)),
    (lambda b: gated_delta(b, heads=8, key_heads=2), ("T", 8)),
    (lambda b: b.wkv6("x", "x", "x", "x", u="norm", layer=0, heads=2), ("T", 8)),
    (lambda b: b.wkv7("x", "x", "x", "x", "x", "x", layer=0, heads=4), ("T", 8)),
    (lambda b: b.grouped_rms_norm("x", "norm", 2, 1e-5), ("T", 8)),
    (lambda b: b.l2_norm("x", 4, 1e-6), ("T", 8)),
    (lambda b: b.decay("x", "head_norm"), ("T", 8)),
    (lambda b: b.mix("x", b.matmul("x", "tall"), 4), ("T", 12)),
    (lambda b: b.sinkhorn(b.columns("x", head_dim=8, start=0, width=4), 2, 3, 1e-6), ("T", 4)),
    (lambda b: b.match_rms(b.matmul("x", "tall"), "x"), ("T", 24)),
    (lambda b: b.cutoff("x", 1.6), ("T", 8)),
    (lambda b: b.group_sum("x", 4), ("T", 2)),
    (lambda b: b.softmax("x", 4), ("T", 8)),
    (lambda b: b.mul("x", "x"), ("T", 8)),
    (lambda b: b.glu("x", "x", "silu"), ("T", 8)),
    (lambda b: b.activation("x", "relu2"), ("T", 8)),
    (lambda b: b.add("x", "x"), ("T", 8)),
    (lambda b: b.scale("x", 2.0), ("T", 8)),
    (lambda b: b.softcap("x", 30.0), ("T", 8)),
]


@pytest.mark.parametrize(("make", "expected"), SHAPES)
def test_shapes(make: Callable[[Builder], str], expected: tuple[object, ...]) -> None:
    b = builder()
    assert shape(b, make(b)) == expected


ERRORS: list[tuple[Callable[[Builder], object], str]] = [
    (lambda b: b.embed("norm"), "'norm' .* is no table of rows"),
    (lambda b: b.embed("cube"), r"'cube' \(4, 8, 8\) is no table of rows"),
    (lambda b: b.add_positions("x", "cube"), "'cube' .* is no table of rows"),
    (lambda b: b.add_positions("x", "narrow"), "'narrow' .* cannot be added to 'x'"),
    (lambda b: b.matmul("x", "cube"), "cannot be multiplied with 'cube'"),
    (lambda b: b.matmul("x", "square", "cube"), "bias 'cube'"),
    (lambda b: b.rms_norm("x", "cube", 1e-5), "'cube' .* does not divide 'x'"),
    (
        lambda b: b.rope("x", head_dim=4, inv_freq=[1], style="neox", factors="factors"),
        "rope of 1 frequencies: 'factors'",
    ),
    (lambda b: b.matmul("x", "norm"), "cannot be multiplied with 'norm'"),
    (lambda b: b.matmul(b.matmul("x", "tall"), "square"), "cannot be multiplied with 'square'"),
    (lambda b: b.matmul("x", "square", "bias24"), "bias 'bias24'"),
    (lambda b: b.rms_norm("x", "odd", 1e-5), "'odd' .* does not divide 'x'"),
    (lambda b: b.layer_norm("x", "table", None, 1e-5), "'table' .* does not divide"),
    (lambda b: b.add("x", b.matmul("x", "tall")), "must match"),
    (lambda b: b.add("x", b.select("x")), "must match"),
    (lambda b: b.glu("x", "x", "swish"), "unknown activation 'swish'"),
    (lambda b: b.activation("x", ""), "unknown activation ''"),
    (lambda b: b.rope("x", head_dim=3, inv_freq=[1], style="neox"), "does not fit 'x'"),
    (lambda b: b.rope("x", head_dim=4, inv_freq=[1] * 3, style="neox"), "rope of 6 of 4"),
    (lambda b: b.rope("x", head_dim=4, inv_freq=[1], style="gptj"), "unknown rope style 'gptj'"),
    (
        lambda b: attention(b, "x", "x", "x", heads=3),
        "3 and 2 heads with keys of 4 and values of 4",
    ),
    (lambda b: attention(b, "x", "x", "x", kv_heads=1), "2 and 1 heads with keys of 4"),
    (lambda b: attention(b, "x", "x", b.matmul("x", "tall")), "values of 4"),
    (lambda b: attention(b, "x", b.select("x"), "x"), "heads with keys of 4"),
    (lambda b: attention(b, "x", "x", v_dim=5), "values of 5 are no part of keys of 4"),
    (lambda b: attention(b, "x", k_dim=8), "2 and 2 heads with keys of 8"),
    (
        lambda b: b.attention(
            "x", v="x", layer=0, heads=2, kv_heads=2, k_dim=4, v_dim=4, scale=1.0
        ),
        "values without keys",
    ),
    (lambda b: b.short_conv("x", "norm", layer=0), "has no taps for each"),
    (lambda b: b.short_conv("x", "tall", layer=0), "has no taps for each"),
    (lambda b: b.short_conv("x", "one_tap", layer=0), "keeps nothing"),
    (lambda b: b.short_conv("x", "taps", "bias24", layer=0), "short_conv: bias 'bias24'"),
    (lambda b: b.short_conv("x", "taps", layer=0, dilation=0), "taps 0 rows apart"),
    (lambda b: ngrams(b, table="norm"), "'norm' .* is no table of rows"),
    (lambda b: ngrams(b, multipliers=(3,)), "ngrams: 'square' .* has no rows"),
    (lambda b: ngrams(b, multipliers=(3, 5, 1 << 64)), "ngrams: 'square' .* has no rows"),
    (lambda b: ngrams(b, starts=(0, 1, 2)), "ngrams: 'square' .* has no rows"),
    (lambda b: ngrams(b, starts=(0, 2, 4, 7)), "ngrams: 'square' .* has no rows"),
    (lambda b: ngrams(b, sizes=(2, 2, 0, 2)), "ngrams: 'square' .* has no rows"),
    (lambda b: ngrams(b, starts=(0, -1, 4, 6)), "ngrams: 'square' .* has no rows"),
    (lambda b: ssm_scan(b, "norm", states=4), "ssm_scan: 'x'"),
    (lambda b: ssm_scan(b, "taps", states=8), "ssm_scan: 'x'"),
    (lambda b: ssm_scan(b, "norm", states=2048), "ssm_scan: 'x'"),
    (lambda b: gated_delta(b, heads=8, key_heads=3), "gated_delta: 'x'"),
    (lambda b: gated_delta(b, heads=4, key_heads=2), "gated_delta: 'x'"),
    (lambda b: b.wkv6("x", "x", "x", "x", u="head_norm", layer=0, heads=2), "wkv6: 'x'"),
    (lambda b: b.wkv7("x", "x", "x", "x", "x", "x", layer=0, heads=3), "wkv7: 'x'"),
    (lambda b: b.grouped_rms_norm("x", "head_norm", 2, 1e-5), "grouped_rms_norm: 'x'"),
    (lambda b: b.l2_norm("x", 3, 1e-6), "l2_norm: 'x'"),
    (lambda b: b.mix("x", "x", 3), "mix: 'x' .* no weights of 3 streams"),
    (lambda b: b.mix("x", b.select("x"), 4), "mix: .* no weights of 4 streams"),
    (lambda b: b.sinkhorn("x", 3, 1, 1e-6), "sinkhorn: 'x' .* is no matrix of 3 streams"),
    (lambda b: b.match_rms("x", b.matmul("x", "tall")), "as wide as no stream of 'x'"),
    (lambda b: b.match_rms("x", "x", -1.0), "match_rms: 'x'"),
    (lambda b: b.cutoff("x", 1.0, 8), "cutoff: 'x' .* has no deviation"),
    (lambda b: b.decay("x", "odd"), "decay: 'x'"),
    (lambda b: b.group_sum("x", 3), "group_sum: 'x'"),
    (lambda b: b.softmax("x", 0), "softmax: 'x'"),
    (lambda b: b.add("x", "y"), "'y' is used before it is made"),
    (lambda b: b.build(out="x"), "'out' is not computed here"),
    (lambda b: b.build(out="nothing"), "'out' is not computed here"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors_name_segment_and_reason(make: Callable[[Builder], object], message: str) -> None:
    with pytest.raises(ProgramError, match=message) as raised:
        make(builder())
    assert str(raised.value).startswith("segment 'layer.7'")


def test_neutral_scale_and_cap_emit_nothing() -> None:
    b = builder()
    assert b.scale("x", 1.0) == "x"
    assert b.softcap("x", 0.0) == "x"


def test_a_weight_used_twice_is_listed_once() -> None:
    b = builder()
    x = b.matmul(b.matmul("x", "square"), "square")
    segment = b.build(x=x)
    assert [w.name for w in segment.weights] == ["square"]
    assert segment.program.readers("square") == [0, 1]
    assert segment.outputs == ("x",)
    assert segment.program.outputs == (x,)
