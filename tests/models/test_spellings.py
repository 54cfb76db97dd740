"""One model, several spellings: each must give exactly the same Segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_hybrids
import make_tiny_models
from strata.formats import open_model
from strata.models import FAMILIES, ConfigError, build_model
from strata.program import Model, Op
from strata.quantizer.directories import as_gguf
from support.headers import Header, gguf, huggingface
from support.special_models import SPECIAL

DROP: Any = ...


def ops(model: Model, kind: str) -> list[Op]:
    """All Ops of a kind in running order."""
    return [op for segment in model.segments for op in segment.program.ops if op.kind == kind]


def old_rope(name: str, spelling: str = "rope_type", **more: Any) -> Any:
    """A tiny model's header with rope settings as they were written before `rope_parameters`."""
    table = dict(make_tiny_models.golden(name).config["rope_parameters"])
    theta = table.pop("rope_theta")
    table[spelling] = table.pop("rope_type")
    changes = {"rope_parameters": DROP, "rope_theta": theta, "rope_scaling": table, **more}
    return huggingface(name, **changes)


@pytest.mark.parametrize(
    "name", ["llama_linear", "llama_llama3", "llama_yarn", "llama_dynamic", "phi3_long"]
)
@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_old_rope_settings(name: str, spelling: str) -> None:
    assert build_model(old_rope(name, spelling)) == build_model(huggingface(name))


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_early_names_of_long_rope(kind: str) -> None:
    header = old_rope("phi3_long")
    header.metadata["rope_scaling"]["rope_type"] = kind
    header.metadata["rope_scaling"].pop("factor", None)
    assert build_model(header) == build_model(huggingface("phi3_long"))


def test_old_gemma3_settings() -> None:
    header = huggingface(
        "gemma3",
        rope_parameters=DROP,
        rope_theta=1000000.0,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    assert build_model(header) == build_model(huggingface("gemma3"))
    # Both bases are also what the family has where nothing is said.
    for key in ("rope_theta", "rope_local_base_freq"):
        del header.metadata[key]
    assert build_model(header) == build_model(huggingface("gemma3"))


def test_layer_types_or_a_pattern() -> None:
    listed = huggingface("gemma3")
    pattern = huggingface("gemma3", layer_types=DROP, sliding_window_pattern=2)
    assert build_model(pattern) == build_model(listed)
    assert [layer.window for layer in build_model(listed).state] == [8, 0, 8]
    usual = build_model(huggingface("gemma3", layer_types=DROP))
    assert [layer.window for layer in usual.state] == [8, 8, 8]
    in_gguf = build_model(gguf("gemma3", **{"attention.sliding_window_pattern": 2}))
    assert in_gguf.state == build_model(listed).state


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"use_sliding_window": False}, [0, 0]),
        ({}, [0, 8]),
        ({"layer_types": DROP}, [0, 8]),
        ({"layer_types": DROP, "max_window_layers": 0}, [8, 8]),
        ({"layer_types": ["sliding_attention", "full_attention"]}, [8, 0]),
    ],
)
def test_windows_of_qwen2(changed: dict[str, Any], expected: list[int]) -> None:
    model = build_model(huggingface("qwen2_window_yarn", **changed))
    assert [layer.window for layer in model.state] == expected


def test_a_llama_has_no_window_and_a_mistral_has() -> None:
    llama = build_model(huggingface("llama", sliding_window=8))
    assert [layer.window for layer in llama.state] == [0, 0]
    mistral = build_model(huggingface("mistral_window", sliding_window=None))
    assert [layer.window for layer in mistral.state] == [0, 0]


def test_gemma2_without_caps_says_null() -> None:
    silent = huggingface("gemma2", attn_logit_softcapping=DROP, final_logit_softcapping=DROP)
    assert {op.attrs["softcap"] for op in ops(build_model(silent), "attention")} == {50.0}
    assert [op.attrs["cap"] for op in ops(build_model(silent), "softcap")] == [30.0]
    null = huggingface("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert {op.attrs["softcap"] for op in ops(build_model(null), "attention")} == {0.0}
    assert ops(build_model(null), "softcap") == []


def test_score_scale_of_the_27b_gemmas() -> None:
    """GGUF has no key for it: it follows from the number of layers, as in llama.cpp."""
    header = gguf("gemma2", block_count=46, **{"attention.sliding_window_pattern": 2})
    layer = {n: t for n, t in header.tensors.items() if n.startswith("blk.0.")}
    for i in range(46):
        header.tensors.update({n.replace("blk.0.", f"blk.{i}."): t for n, t in layer.items()})
    header.metadata["gemma2.attention.head_count"] = 4
    scales = {op.attrs["scale"] for op in ops(build_model(header), "attention")}
    assert scales == {(64 / 4) ** -0.5}


def test_fused_projections_in_gguf() -> None:
    """llama.cpp's converter can fuse q, k and v of any family."""
    apart, fused = gguf("llama"), gguf("llama")
    for i in range(2):
        parts = [fused.tensors.pop(f"blk.{i}.attn_{p}.weight") for p in "qkv"]
        rows = sum(p.shape[0] for p in parts)
        whole = Header("gguf", {}, {f"blk.{i}.attn_qkv.weight": (rows, 64)})
        fused.tensors.update(whole.tensors)
    one, other = build_model(fused), build_model(apart)
    assert [s.program for s in one.segments] == [s.program for s in other.segments]
    weights = {w.name: w for w in one.segments[1].weights}
    assert weights["blk.0.attn_q.weight"].rows == (0, 64)
    assert weights["blk.0.attn_k.weight"].rows == (64, 96)
    assert weights["blk.0.attn_v.weight"].rows == (96, 128)
    assert weights["blk.0.attn_v.weight"].source == "blk.0.attn_qkv.weight"


def test_steps_of_a_falcon_mamba_are_normed(tmp_path: Path) -> None:
    """A GGUF file says so with a key alone: there are no weights of these norms."""
    directory = make_tiny_models.write_directory(tmp_path, make_tiny_models.golden("mamba"))
    with open_model(directory) as opened:
        file = as_gguf(opened, vocabulary=False)
        shapes = {name: info.shape for name, info in file.tensors.items()}

    def model(**stated: Any) -> Model:
        return build_model(Header("gguf", {**file.metadata, **stated}, shapes))  # type: ignore[arg-type]

    plain, normed = model(), model(**{"mamba.ssm.dt_b_c_rms": True})
    layers = len(plain.segments) - 2
    assert len(ops(normed, "rms_norm")) == len(ops(plain, "rms_norm")) + 3 * layers
    assert model(**{"mamba.ssm.dt_b_c_rms": False}) == plain
    with pytest.raises(ConfigError, match="dt_b_c_rms"):
        model(**{"mamba.ssm.dt_b_c_rms": 1})


def renamed(header: Any, old: str, new: str) -> Any:
    """The header with another prefix of its tensors' names."""
    shapes = {new + n.removeprefix(old): t.shape for n, t in header.tensors.items()}
    return Header(header.kind, header.metadata, shapes)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("gpt2", "transformer.", ""),
        ("opt", "model.decoder.", "decoder."),
        ("llama_tied_biased", "model.", ""),
        ("gemma3", "model.", "language_model.model."),
        ("gemma3", "model.", "model.language_model."),
    ],
)
def test_prefixes_of_checkpoints(name: str, old: str, new: str) -> None:
    usual = build_model(huggingface(name))
    other = build_model(renamed(huggingface(name), old, new))
    assert [s.program for s in other.segments] == [s.program for s in usual.segments]


def test_multimodal_gemma3_gives_its_language_model() -> None:
    header = renamed(huggingface("gemma3"), "model.", "language_model.model.")
    header.metadata = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": header.metadata,
    }
    vision = Header("huggingface", {}, {"vision_tower.patch.weight": (4, 4)})
    header.tensors.update(vision.tensors)
    found = build_model(header)
    usual = build_model(huggingface("gemma3"))
    assert [s.program for s in found.segments] == [s.program for s in usual.segments]


ALIASES = {
    "llama": ["llama", "LlamaForCausalLM", "LLaMAForCausalLM", "YiForCausalLM", "yi", "smollm"],
    "mistral_window": ["mistral", "MistralForCausalLM"],
    "qwen2": ["qwen2", "Qwen2ForCausalLM"],
    "qwen3": ["qwen3", "Qwen3ForCausalLM"],
    "gemma2": ["gemma2", "Gemma2ForCausalLM"],
    "gemma3": [
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
    ],
    "phi3_window": ["phi3", "Phi3ForCausalLM"],
    "olmo2": ["olmo2", "Olmo2ForCausalLM"],
    "olmo3": ["olmo3", "Olmo3ForCausalLM"],
    "granite": ["granite", "GraniteForCausalLM"],
    "gpt2": ["gpt2", "GPT2LMHeadModel"],
    "opt": ["opt", "OPTForCausalLM"],
    "mamba": ["mamba", "MambaForCausalLM"],
    "mamba2": ["mamba2", "Mamba2ForCausalLM"],
    "granite_hybrid": ["granitehybrid", "GraniteMoeHybridForCausalLM"],
    "jamba": ["jamba", "JambaForCausalLM"],
    "nemotron_h": ["nemotron_h", "NemotronHForCausalLM"],
    "lfm2": ["lfm2", "Lfm2ForCausalLM"],
    "qwen35": [
        "qwen35",
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
    ],
}
ALIASES["llama"] += ["AquilaForCausalLM", "InternLM3ForCausalLM"]
# Of these test_hybrids.py has files.
GENERATION = "ConditionalGeneration"
GGUF_ONLY = {"falcon-h1", "plamo2", *make_tiny_hybrids.names()}
# Directories of these are written in test_live_hybrids.py.
LIVE = {"Qwen3NextForCausalLM", "MiniMaxForCausalLM", "qwen3_5_moe_text", "Lfm2MoeForCausalLM"}
LIVE |= {f"{name}ForCausalLM" for name in ("FalconH1", "FalconMamba", "Bamba", "VaultGemma")}
# Of these test_live_published.py has some.
LIVE |= {
    f"{name}ForCausalLM"
    for name in (
        *("Dots3Note", "MiniMaxM3VL"),
        *("AXK1", "BailingHybrid", "HYV4", "HrmText", "KimiLinear", "MiMoV2Flash", "OlmoHybrid"),
    )
}
LIVE |= {f"Qwen3_5MoeFor{task}" for task in ("CausalLM", "ConditionalGeneration")}


def test_every_row_of_the_table_builds_its_family() -> None:
    # What composed.py builds has goldens of its own, in test_variants.py; mixtures in directories
    # are compared in test_live_mixtures, latent attention in test_latent_attention, and what is in
    # files of its own in test_special_families and test_live_special.
    experts = {"qwen3moe", "Qwen3MoeForCausalLM", "MixtralForCausalLM"}
    names = ("DeepseekV2", "DeepseekV3", "DeepseekV32", "Glm4MoeLite", "GlmMoeDsa", "Mistral4")
    experts |= {f"{name}ForCausalLM" for name in (*names, "Youtu", "MiniCPM3", "HYV3")}
    latent = {
        "qwen35moe",
        "lfm2moe",
        "nemotron_h_moe",
        "deepseek2",
        "deepseek32",
        "glm-dsa",
        "mistral4",
        "minicpm3",
    }
    spelled = {a for names in ALIASES.values() for a in names}
    live = {f"Gemma{n}For{what}" for n in ("3n", "4") for what in ("CausalLM", GENERATION)}
    live |= {"gemma3n_text", "gemma4_text", "gemma4_unified_text", "llama4_text"}
    live |= {f"Gemma4UnifiedFor{what}" for what in ("CausalLM", GENERATION)}
    live |= {"AfmoeForCausalLM", "LagunaForCausalLM", "Llama4ForCausalLM", f"Llama4For{GENERATION}"}
    assert spelled == set(FAMILIES) - GGUF_ONLY - LIVE - experts - latent - SPECIAL.keys() - live
    for golden, names in ALIASES.items():
        usual = build_model(huggingface(golden)).segments
        for name in names:
            assert build_model(huggingface(golden, architectures=[name])).segments == usual


def test_every_rope_setting_changes_the_logits() -> None:
    """The goldens are of the same weights; if two were equal, one setting would be untested."""
    names = ["llama", "llama_linear", "llama_llama3", "llama_yarn", "mistral_window"]
    found = [make_tiny_models.golden(name).logits() for name in names]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 0.01
