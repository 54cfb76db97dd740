"""Rope settings reduced to frequencies and magnitudes, against the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from strata.errors import StrataError
from strata.models import build_model
from strata.program import Op
from support.headers import gguf, huggingface

DIM = 16
PLAIN = [10000.0 ** (-2 * i / DIM) for i in range(DIM // 2)]


def rope(header: Any, context: int | None = None) -> Op:
    """The first rope Op of a model."""
    ops = build_model(header, context).segments[1].program.ops
    return next(op for op in ops if op.kind == "rope")


def scaled(**settings: Any) -> Any:
    return huggingface("llama", rope_parameters={"rope_theta": 10000.0, **settings})


def check(op: Op, expected: list[float], mscale: float = 1.0) -> None:
    """Frequencies are rounded to float32, nothing more."""
    np.testing.assert_allclose(op.attrs["inv_freq"], expected, rtol=2.0**-24)
    assert op.attrs["mscale"] == pytest.approx(mscale, rel=1e-12)


def test_frequencies_are_float32_numbers() -> None:
    found = rope(huggingface("llama")).attrs["inv_freq"]
    assert all(f == float(np.float32(f)) for f in found)
    check(rope(huggingface("llama")), PLAIN)
    assert rope(huggingface("llama")).attrs["style"] == "neox"
    assert rope(gguf("llama")).attrs["style"] == "interleaved"
    assert rope(gguf("granite")).attrs["style"] == "interleaved"
    assert rope(gguf("qwen2")).attrs["style"] == "neox"


def test_linear() -> None:
    check(rope(scaled(rope_type="linear", factor=4.0)), [f / 4 for f in PLAIN])
    for keys in (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 4.0},
        {"rope.scale_linear": 4.0},
    ):
        check(rope(gguf("llama", **keys)), [f / 4 for f in PLAIN])
    none = {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    check(rope(gguf("llama", **none)), PLAIN)


def test_dynamic_is_plain_inside_the_trained_context() -> None:
    check(rope(scaled(rope_type="dynamic", factor=4.0)), PLAIN)


def yarn(factor: float, original: int) -> list[float]:
    """Section 3.2 of the paper, dimension by dimension, with beta 32 and 1."""

    def dimension(rotations: float) -> float:
        turns = original / (rotations * 2 * math.pi)
        return DIM * math.log(turns) / (2 * math.log(10000.0))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), DIM - 1)
    out = []
    for i, f in enumerate(PLAIN):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        out.append(f / factor * ramp + f * (1 - ramp))
    return out


def test_yarn() -> None:
    settings = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    expected = yarn(4.0, 4096)
    usual = 0.1 * math.log(4) + 1
    check(rope(scaled(**settings)), expected, usual)
    check(rope(scaled(**settings, attention_factor=1.5)), expected, 1.5)
    over, under = 0.1 * 0.7 * math.log(4) + 1, 0.1 * 0.5 * math.log(4) + 1
    check(rope(scaled(**settings, mscale=0.7, mscale_all_dim=0.5)), expected, over / under)
    keys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 4096,
    }
    check(rope(gguf("llama", **keys)), expected, usual)
    check(rope(gguf("llama", **keys, **{"rope.scaling.attn_factor": 1.5})), expected, 1.5 * usual)
    one = {"rope.scaling.yarn_log_multiplier": 1.0}
    check(rope(gguf("llama", **keys, **one)), expected, 1.0)


def test_yarn_original_context_beside_the_table() -> None:
    inside = scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)
    beside = scaled(rope_type="yarn", factor=4.0)
    beside.metadata["original_max_position_embeddings"] = 64
    assert rope(beside) == rope(inside)


def test_llama3_keeps_high_divides_low_and_blends_between() -> None:
    settings = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = []
    for f in PLAIN:
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            expected.append(f)
        elif wavelength > 8192:
            expected.append(f / 8)
        else:
            smooth = (8192 / wavelength - 1) / 3
            expected.append((1 - smooth) * f / 8 + smooth * f)
    assert len({e / f for e, f in zip(expected, PLAIN, strict=True)}) >= 3
    check(rope(scaled(**settings)), expected)


def test_long_rope_chooses_its_factors_by_context() -> None:
    """16 positions were trained; contexts of up to 16 use short factors, whatever is run."""
    header = huggingface("phi3_long")
    table = header.metadata["rope_parameters"]
    plain = [10000.0 ** (-2 * i / 12) for i in range(6)]
    growth = math.sqrt(1 + math.log(256 / 16) / math.log(16))
    for context, name in ((None, "long_factor"), (17, "long_factor"), (16, "short_factor")):
        expected = [f / s for f, s in zip(plain, table[name], strict=True)]
        check(rope(header, context), expected, growth)
    for context, name in ((None, "long"), (17, "long"), (16, "short")):
        op = rope(gguf("phi3_long"), context)
        assert op.inputs[1] == f"rope_factors_{name}.weight"
        # GGUF keeps the magnitude as a float32.
        assert op.attrs["mscale"] == pytest.approx(growth, rel=2.0**-23)


def test_llama3_in_gguf_is_a_weight() -> None:
    op = rope(gguf("llama_llama3"))
    assert op.inputs[1] == "rope_freqs.weight"
    check(op, PLAIN)


def test_partial_rope_turns_the_first_dimensions() -> None:
    assert len(rope(gguf("qwen2", **{"rope.dimension_count": 8})).attrs["inv_freq"]) == 4
    assert len(rope(huggingface("phi3_long")).attrs["inv_freq"]) == 6


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1e308, "mscale_all_dim": 1e-308},
        {"rope_type": "longrope", "short_factor": [0.0] * 8, "long_factor": [0.0] * 8},
        {"rope_type": "longrope", "short_factor": [1e-300] * 8, "long_factor": [1e-300] * 8},
        {"rope_type": "llama3", "factor": 1e-308, "low_freq_factor": 1, "high_freq_factor": 1},
    ],
)
def test_settings_that_divide_by_nothing_are_named(settings: dict[str, Any]) -> None:
    settings = {"original_max_position_embeddings": 64, **settings}
    with pytest.raises(StrataError) as error:
        rope(scaled(**settings))
    assert "rope" in str(error.value) or "position" in str(error.value), error.value
