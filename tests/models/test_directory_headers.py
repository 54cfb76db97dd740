"""Headers of directories whose families are table rows: blocks that predict further tokens are left
out, and what no model has in a key's place is a named error of one line, or is not read."""

from __future__ import annotations

from typing import Any

import pytest

import make_tiny_directories as tiny
from strata.errors import StrataError
from strata.models import ConfigError, UnknownArchitecture, build_model
from support.headers import Header

HOSTILE: list[Any] = [
    *("x", "", True, -1, 0, 3, 2**40, -0.5, 1e30, float("nan"), float("inf")),
    *([], [1], ["x", "y"], [float("nan")] * 2, [2**40] * 4, {}, {"x": 1}),
]
USUAL = {"Falcon", "FalconH1"}
# Names below the prefix, or whole, as checkpoints have them.
BESIDE = ("mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight")
BEHIND = ("model.layers.2.eh_proj.weight", "model.layers.2.shared_head.norm.weight")
FURTHER = {
    "DeepseekV3": BEHIND,
    "DeepseekV32": BEHIND,
    "Ernie4_5_Moe": ("model.mtp_block.0.mlp.up_proj.weight", "model.mtp_linear_proj.0.weight"),
    "ExaoneMoe": BESIDE,
    "Glm4Moe": BEHIND,
    "Glm4MoeLite": BEHIND,
    "GlmMoeDsa": BEHIND,
    "HYV3": BEHIND,
    "NemotronH": BESIDE,
    "Qwen3Next": BESIDE,
}


def header(stated: dict[str, Any], more: tuple[str, ...] = ()) -> Any:
    return Header("huggingface", stated, tiny.shapes(stated) | dict.fromkeys(more, (64, 64)))


@pytest.mark.parametrize("name", sorted(FURTHER))
def test_blocks_that_predict_further_tokens_are_left_out(name: str) -> None:
    stated = tiny.config(name) | {"num_nextn_predict_layers": 1}
    found = build_model(header(stated, FURTHER[name]))
    assert found.segments == build_model(header(stated)).segments


def test_blocks_that_predict_further_tokens_are_left_out_below_a_text_part() -> None:
    stated = tiny.config("Glm4Moe") | {"num_nextn_predict_layers": 1}
    whole = {
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "text_config": stated | {"model_type": "glm4v_moe_text"},
        "vision_config": {},
    }
    shapes = {
        name.replace("model.", "model.language_model.", 1): shape
        for name, shape in tiny.shapes(stated).items()
    }
    below = ("model.language_model.layers.2.eh_proj.weight", "model.language_model.mtp.fc.weight")
    more = dict.fromkeys((*below, "model.visual.blocks.0.attn.qkv.weight"), (64, 64))
    found = build_model(Header("huggingface", whole, shapes | more))  # type: ignore[arg-type]
    assert len(found.segments) == len(build_model(header(stated)).segments)


def test_a_slope_that_is_left_to_the_family() -> None:
    stated = tiny.config("Mpt") | {"attn_config": {"alibi": True}}
    found = build_model(header(stated)).segments[1].program.ops
    assert [op.attrs["alibi"] for op in found if op.kind == "attention"] == [8.0]


def attacked(name: str) -> list[tuple[str, Any, str]]:
    """Each change of one key, and what it is refused with, empty where it is not."""
    stated = tiny.config(name)
    whole, told = header(stated), []
    for key in stated:
        for value in HOSTILE:
            whole.metadata = stated | {key: value}
            try:
                build_model(whole)
            except StrataError as error:
                told.append((key, value, str(error)))
            else:
                told.append((key, value, ""))
    return told


@pytest.mark.parametrize(
    "name", [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in tiny.CONFIGS]
)
def test_what_no_model_has_is_named_or_not_read(name: str) -> None:
    refused = [row for row in attacked(name) if row[2]]
    assert len(refused) > 50
    for key, value, text in refused:
        assert "\n" not in text, (key, value)
        assert len(text) < 1000 or key == "architectures", (key, value)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("Falcon", {"alibi": True}, "'alibi' is True: this is not built"),
        ("Bloom", {"apply_residual_connection_post_layernorm": True}, "is True: this is not built"),
        ("Mpt", {"attn_config": {"alibi": False}}, "alibi' is False: this is not built"),
        ("GPTBigCode", {"multi_query": False}, "'multi_query' is False: this is not built"),
        ("FalconH1", {"mamba_rms_norm": True}, "a norm before the gate is not built"),
        ("FalconH1", {"ssm_multipliers": [1.0]}, "'ssm_multipliers' lists 1 numbers"),
        ("NemotronH", {"hybrid_override_pattern": "MX*E"}, "4 letters of"),
        ("NemotronH", {"n_routed_experts": None}, "is missing or 0: layer 1 has experts"),
        ("Glm4MoeLite", {"mlp_layer_types": ["dense"]}, "'mlp_layer_types': a list of 2"),
    ],
)
def test_settings_that_are_not_built(name: str, changed: dict[str, Any], message: str) -> None:
    whole = header(tiny.config(name))
    whole.metadata |= changed
    with pytest.raises(ConfigError, match=message):
        build_model(whole)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("MllamaForConditionalGeneration", {}, "some of its layers attend to pictures"),
        ("PaliGemmaForConditionalGeneration", {}, "seen in both directions"),
        ("LlavaForConditionalGeneration", {"model_type": "t5"}, "with text of 't5' is not known"),
        ("LlavaForConditionalGeneration", {"model_type": "\x1b\n"}, r"text of '\\x1b\\n' is not"),
    ],
)
def test_text_parts_that_are_no_models_are_refused(
    name: str, text: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnknownArchitecture, match=message):
        build_model(Header("huggingface", {"architectures": [name], "text_config": text}, {}))  # type: ignore[arg-type]
