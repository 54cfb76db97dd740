"""What a GGUF file says of its experts counts, in the rows of variants.py that heed it, and layers
that predict further tokens are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_variants as tiny
from strata.formats import open_model
from strata.formats.gguf_writer import TensorSource, write_gguf
from strata.models import ConfigError, build_model
from strata.models.variants import GGUF
from strata.quant import by_name
from support.forward import Forward

TOKENS = tiny.tokens()[:10]


def test_what_a_file_says_of_its_experts_counts(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"expert_used_count": 2},
        {"expert_gating_func": 1},
        {"expert_weights_norm": False},
        {"expert_weights_scale": 0.0},
        {"expert_group_count": 3, "expert_group_used_count": 2},
    ]
    found = []
    for change in changes:
        with open_model(tiny.write(tmp_path / "m.gguf", "dots1", **change)) as file:
            found.append(Forward(file).logits(TOKENS))
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("grok", "attention.output_scale", "x"),
        ("grok", "attention.output_scale", float("nan")),
        ("grok", "attn_logit_softcapping", -1.0),
        ("cohere2moe", "leading_dense_block_count", 3),
        ("cohere2moe", "attention.layer_norm_rms_epsilon", "x"),
        ("exaone-moe", "nextn_predict_layers", 2),
        ("smallthinker", "attention.sliding_window", "x"),
        ("smallthinker", "rope.freq_base_swa", 0.0),
        ("mellum", "expert_used_count", 7),
        ("mellum", "expert_used_count", "x"),
        ("grovemoe", "experts_per_group", 4),
        ("grovemoe", "experts_per_group", 0),
        ("grovemoe", "expert_group_scale", "x"),
        ("grovemoe", "expert_chunk_feed_forward_length", -1),
        ("ernie4_5-moe", "interleave_moe_layer_step", 0),
    ],
)
def test_malformed_keys_are_named(name: str, key: str, value: Any, tmp_path: Path) -> None:
    with open_model(tiny.write(tmp_path / "m.gguf", name)) as file:
        build_model(file)
        file.metadata = {**file.metadata, f"{name}.{key}": value}  # type: ignore[misc]
        with pytest.raises(ConfigError, match=key.rsplit(".", 1)[-1]):
            build_model(file)


@pytest.mark.parametrize("name", ["ernie4_5", "paddleocr"])
def test_experts_that_nobody_reads_are_no_error(name: str, tmp_path: Path) -> None:
    with open_model(tiny.write(tmp_path / "m.gguf", name, expert_count=2)) as file:
        build_model(file)


def test_experts_of_an_architecture_without_are_named(tmp_path: Path) -> None:
    with open_model(tiny.write(tmp_path / "m.gguf", "arcee")) as file:
        file.metadata = {**file.metadata, "arcee.expert_count": 2}  # type: ignore[misc]
        with pytest.raises(ConfigError, match="expert_count"):
            build_model(file)


@pytest.mark.parametrize("name", ["cohere2moe", "exaone-moe", "glm4moe"])
def test_layers_for_further_tokens_are_left_out(name: str, tmp_path: Path) -> None:
    keys, f32 = tiny.metadata(name), by_name("F32")
    arrays = tiny.arrays(name, keys, tiny.unread(name))
    more = {f"blk.2.{tiny.part_of_layer(key)}": a for key, a in arrays.items() if "blk.1." in key}
    more["blk.2.nextn.eh_proj.weight"] = np.zeros((32, 64), np.float32)
    keys |= {f"{name}.block_count": 3, f"{name}.nextn_predict_layers": 1}
    keys[f"{name}.attention.sliding_window_pattern"] = [True, False, False]
    sources = [
        TensorSource.of(key, array.shape, f32, array) for key, array in (arrays | more).items()
    ]
    write_gguf(tmp_path / "more.gguf", keys, sources)
    with open_model(tmp_path / "more.gguf") as file:
        got = Forward(file).logits(TOKENS)
    with open_model(tiny.write(tmp_path / "m.gguf", name)) as file:
        assert Forward(file).logits(TOKENS).tobytes() == got.tobytes()


def test_cohere2moe_has_the_norm_whose_epsilon_is_stated(tmp_path: Path) -> None:
    for eps, kind in ((0.0, "layer_norm"), (1e-5, "rms_norm")):
        keys = {"attention.layer_norm_rms_epsilon": eps}
        with open_model(tiny.write(tmp_path / "m.gguf", "cohere2moe", **keys)) as file:
            kinds = {op.kind for s in build_model(file).segments for op in s.program.ops}
            assert kinds & {"layer_norm", "rms_norm"} == {kind}


def test_smallthinker_without_a_window_rotates_every_layer(tmp_path: Path) -> None:
    keys = {"attention.sliding_window": 0}
    with open_model(tiny.write(tmp_path / "m.gguf", "smallthinker", **keys)) as file:
        layers = build_model(file).segments[1:-1]
        assert all(any(op.kind == "rope" for op in s.program.ops) for s in layers)


def test_every_mixture_of_the_table_has_experts(tmp_path: Path) -> None:
    for name in tiny.names():
        if GGUF[name].mixture is None:
            continue
        with open_model(tiny.write(tmp_path / "m.gguf", name)) as file:
            kinds = [op.kind for s in build_model(file).segments for op in s.program.ops]
        assert "experts" in kinds, name
