"""Families whose attention or layers are special, from GGUF files of random weights: they are
built, the native backend agrees with the reference, neither steps nor streaming change a bit, and
what a file says of them counts.

That the logits are llama.cpp's is compared by ``bench/archs_against_llamacpp.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_directories as directories
from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KV_TYPES
from strata.backends.reference import ReferenceBackend
from strata.formats import open_model
from strata.models import build_model, trained_context
from strata.models.errors import ConfigError, MissingTensor, TensorShape
from strata.program import Model, PagedKV, Shared
from support.forward import Forward
from support.headers import Header
from support.special_models import SPECIAL, header, shapes, write
from support.streaming import forward, least_ring, settings, units

TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 96, 24)]


@pytest.mark.parametrize("architecture", sorted(SPECIAL))
def test_every_family(architecture: str, tmp_path: Path) -> None:
    with open_model(write(tmp_path / "m.gguf", architecture)) as file:
        # Keys and values are rounded alike, so that no router is near enough to choose another.
        want = Forward(file, backend=ReferenceBackend(KV_TYPES[0])).logits(TOKENS)
        assert np.isfinite(want).all()
        run = Forward(file, backend=CpuBackend(threads=2))
        got = run.logits(TOKENS)
        # Some element of a key may still be rounded the other way: 2^-11 of it.
        assert np.abs(got - want).max() < 2.0**-11 * np.abs(want).max()
        for chunks in ([7, 1, 16], [1] * 24):
            assert run.logits(TOKENS, chunks).tobytes() == got.tobytes()
        names = units(file)
        # Tiles of one panel, and such as hold several experts'.
        for some, tile in ((names, 4096), (names[::2], 40000)):
            streamed = forward(file, settings(some, tile=tile, ring=least_ring(file, tile)))
            assert streamed.logits(TOKENS, [9, 1, 14]).tobytes() == got.tobytes()


# By family: what may be said otherwise, of which each gives other logits.
CHANGES: dict[str, list[dict[str, Any]]] = {
    "llama4": [{"attention.sliding_window": 0}, {"attention.scale": 0.5}],
    "mimo2": [
        {"attention.value_scale": 1.0},
        {"attention.sliding_window": 4},
        {"rope.freq_base_swa": 10000.0},
        {"attention.sliding_window_pattern": [True, True, True, False]},
    ],
    "afmoe": [{"attention.sliding_window": 4}, {"rope.freq_base_swa": 10000.0}],
    "hy_v3": [{"expert_weights_norm": False}, {"expert_gating_func": 1}],
    "minimax-m3": [
        {"rope.dimension_count": 16},
        {"expert_weights_scale": 1.0},
        {"attention.indexer.top_k": 2},
        {"attention.indexer.top_k": 32},
        {"attention.indexer.block_size": 3},
        {"attention.indexer.local_blocks": 3},
    ],
    "laguna": [{"rope.dimension_count_swa": 8}, {"attention.sliding_window": 4}],
    "maple": [{"swiglu_clamp_exp": [0.5, 0.0]}, {"swiglu_clamp_exp": None}],
    "dots3note": [
        {"attention.sliding_window": 4},
        {"rope.freq_base_swa": 10000.0},
        *({"attention.indexer.top_k": most} for most in (9, 128)),
    ],
    "hy_v4": [
        {"hyper_connection.epsilon": 0.1},
        {"hyper_connection.magnitude": 1.0},
        {"swiglu_clamp_exp": None},
        *({"attention.indexer.top_k": most} for most in (9, 128)),
    ],
    "deepseek32": [{"attention.indexer.top_k": 9}, {"attention.indexer.top_k": 128}],
    "glm-dsa": [{"attention.indexer.top_k": 9}, {"attention.indexer.top_k": 128}],
    "hrm_text": [
        {"hrm.h_cycles": 1, "block_count": 6},
        {"hrm.l_cycles": 3, "block_count": 16},
        {"embedding_scale": 1.0},
    ],
    "gemma4": [
        {"attention.sliding_window": 4},
        {"rope.freq_base_swa": 10000.0},
        {"rope.dimension_count_swa": 8},
        {"rope.freq_base": 100.0},
        {"final_logit_softcapping": 1.0},
    ],
    "gemma3n": [
        {"attention.sliding_window": 4},
        {"altup.active_idx": 0},
        {"activation_sparsity_scale": [1.0, 1.0, -np.inf, -np.inf, -np.inf]},
        {"final_logit_softcapping": 1.0},
        {"rope.freq_base_swa": 10000.0},
        {"rope.freq_base": 100.0},
    ],
    "gemma4 experts": [{"expert_used_count": 1}, {"attention.sliding_window": 4}],
}


@pytest.mark.parametrize("architecture", sorted(SPECIAL))
def test_what_a_file_says_counts(architecture: str, tmp_path: Path) -> None:
    found = []
    for change in [{}, *CHANGES[architecture]]:
        with open_model(write(tmp_path / "m.gguf", architecture, **change)) as file:
            found.append(Forward(file).logits(TOKENS))
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 1e-3


UNREAD = ("indexer", "nextn", "token_embd")


def kinds(architecture: str) -> set[str]:
    """Of the Ops of a family."""
    segments = build_model(header(architecture)).segments
    return {op.kind for s in segments for op in s.program.ops}


def ops(model: Model, kind: str) -> list[Any]:
    """All Ops of a kind."""
    return [op for s in model.segments for op in s.program.ops if op.kind == kind]


def test_llama4_sees_chunks_and_every_fourth_layer_sees_all() -> None:
    model = build_model(header("llama4"))
    attention = ops(model, "attention")
    assert [op.attrs["window"] for op in attention] == [8192, 8192, 8192, 0]
    assert [op.attrs["chunked"] for op in attention] == [True, True, True, False]
    assert [state.window for state in model.state if isinstance(state, PagedKV)] == [8192] * 3 + [0]
    (warmed,) = ops(model, "position_scale")
    assert warmed.attrs == {"floor": 8192, "scale": 0.1, "offset": 1.0}
    assert len(ops(model, "rope")) == 6
    assert all(op.attrs["weigh_input"] for op in ops(model, "experts"))
    # The model of 128 experts has no norms of q and k.
    assert sum(len(op.inputs) == 1 for op in ops(model, "rms_norm")) == 6


def test_kept_of_layers_that_differ() -> None:
    kept = build_model(header("mimo2")).state
    assert kept == (PagedKV(2, 24, 16), PagedKV(1, 24, 16, 8), PagedKV(1, 24, 16, 8))
    kept = build_model(header("dots3note")).state
    assert kept == (
        PagedKV(1, 80, 64, v_in_k=True, chosen=True),
        PagedKV(1, 48, 32, 8, v_in_k=True),
        PagedKV(1, 24, 1, v_in_k=True, index=True),
    )
    kept = build_model(header("laguna")).state
    assert [s.window for s in kept if isinstance(s, PagedKV)] == [0, 8, 8, 8, 0]


def test_late_layers_read_the_last_of_their_kind() -> None:
    model = build_model(header("gemma4"))
    local, wide = PagedKV(2, 16, 16, 8), PagedKV(1, 32, 32)
    assert model.state == (local, local, wide, Shared(1), Shared(2))
    assert [op.attrs["layer"] for op in ops(model, "attention")] == [0, 1, 2, 1, 2]
    assert [len(op.inputs) for op in ops(model, "attention")] == [3, 3, 3, 1, 1]
    # The table of per-layer embeddings is read by row, and stays or streams apart.
    rows = {u.name: [w.name for w in u.weights] for u in model.segments[0].units}
    assert rows["embed.per_layer"] == ["per_layer_token_embd.weight"]
    # Where a layer has no values they are its keys before their norm.
    (keyed,) = (s for s in build_model(header("gemma4 experts")).segments if s.name == "layer.1")
    attend = next(op for op in keyed.program.ops if op.kind == "attention")
    made = {op.output: op for op in keyed.program.ops}
    k, v = (made[name] for name in attend.inputs[1:])
    assert made[k.inputs[0]].inputs[0] == v.inputs[0]


def test_a_file_may_hold_keys_that_no_layer_uses() -> None:
    file, more = header("gemma4"), header("gemma4")
    for name in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight"):
        more.tensors[f"blk.3.{name}"] = more.tensors[f"blk.0.{name}"]
    assert build_model(more).segments == build_model(file).segments


def test_stacks_that_run_again_have_weights_once_and_keys_for_each_run(tmp_path: Path) -> None:
    with open_model(write(tmp_path / "m.gguf", "hrm_text")) as file:
        model = build_model(file)
        assert len(model.state) == 12
        body = model.segments[1:-1]
        assert len({w.source for s in body for w in s.weights}) == 4 * len(
            SPECIAL["hrm_text"][1][0]
        )
        runs = [next(w.source for w in s.weights if "attn_q." in w.name) for s in body]
        low, high = (["blk.0.attn_q.weight", "blk.1.attn_q.weight"], ["blk.2.attn_q.weight"])
        assert runs == 2 * (2 * low + high + ["blk.3.attn_q.weight"])


def test_indexers_of_blocks_have_a_choice_for_each_head_of_keys() -> None:
    file = header("minimax-m3")
    assert trained_context(file) == 128
    own, index = PagedKV(1, 16, 16, chosen=True), PagedKV(1, 24, 1, v_in_k=True, index=True)
    assert build_model(file).state == (PagedKV(2, 16, 16), index, own, own)
    (choice,) = ops(build_model(file), "top_keys")
    assert choice.attrs == {"layer": 1, "most": 12, "block": 4, "local": 1}
    assert [op.attrs["layer"] for op in ops(build_model(file), "attention")] == [0, 2, 3]
    file = header("minimax-m3", **{"attention.indexer.top_k": 32})
    assert build_model(file).state == (PagedKV(2, 16, 16),) * 2


@pytest.mark.parametrize("architecture", sorted(SPECIAL))
def test_each_tensor_has_one_shape(architecture: str) -> None:
    # Without this one another form of the same attention is looked for.
    optional = ("attn_k_b", "rope_freqs", "attn_v.", "exps.scale", "layer_output_scale")
    optional = (*optional, "output.weight", "attn_sinks", "exp_probs_b", "ffn_gate_inp")
    # Nothing is asked of an indexer that is not built.
    unread = ("nextn", "token_embd") if "top_keys" in kinds(architecture) else UNREAD
    file = header(architecture)
    for name, shape in shapes(architecture).items():
        if any(part in name for part in unread):
            continue
        info = file.tensors.pop(name)
        if not any(part in name for part in optional):
            with pytest.raises(MissingTensor, match=name):
                build_model(file)
        wrong = (shape[0] + 1, *shape[1:])
        file.tensors[name] = replace(info, shape=wrong)
        with pytest.raises(TensorShape, match=name):
            build_model(file)
        file.tensors[name] = info
    build_model(file)


FAULTS: list[tuple[str, str, Any]] = [
    ("llama4", "interleave_moe_layer_step", -1),
    ("llama4", "attention.sliding_window", "wide"),
    ("llama4", "expert_feed_forward_length", None),
    ("mimo2", "attention.value_scale", float("nan")),
    ("mimo2", "attention.value_length", 0),
    ("mimo2", "attention.sliding_window", None),
    ("mimo2", "attention.sliding_window_pattern", [True]),
    ("mimo2", "nextn_predict_layers", 4),
    ("mimo2", "rope.dimension_count_swa", 25),
    ("afmoe", "rope.dimension_count_swa", 18),
    ("hy_v3", "expert_shared_feed_forward_length", -1),
    ("minimax-m3", "attention.indexer.block_size", -8),
    ("minimax-m3", "attention.indexer.head_count", 4),
    ("minimax-m3", "attention.indexer.key_length", 0),
    ("minimax-m3", "attention.indexer.local_blocks", 4),
    ("laguna", "attention.head_count", [4, 6, 6]),
    ("laguna", "attention.head_count", [4, 5, 6, 6, 4]),
    ("laguna", "attention.sliding_window_pattern", -1),
    ("maple", "swiglu_clamp_exp", [1.0]),
    ("maple", "swiglu_clamp_exp", float("inf")),
    ("dots3note", "attention.kv_lora_rank_swa", 0),
    ("dots3note", "attention.key_length_mla_swa", 1 << 40),
    ("dots3note", "attention.value_length_mla_swa", -1),
    ("hy_v4", "hyper_connection.count", 0),
    ("hy_v4", "hyper_connection.count", 1 << 20),
    ("hy_v4", "hyper_connection.epsilon", -1.0),
    ("hy_v4", "hyper_connection.magnitude", None),
    ("hrm_text", "hrm.layers_per_stack", 0),
    ("hrm_text", "hrm.h_cycles", 1 << 20),
    ("hrm_text", "hrm.l_cycles", None),
    ("hrm_text", "block_count", 13),
    ("gemma3n", "altup.num_inputs", 1),
    ("gemma3n", "altup.num_inputs", 65),
    ("gemma3n", "altup.active_idx", 3),
    ("gemma3n", "activation_sparsity_scale", [1.0]),
    ("gemma3n", "activation_sparsity_scale", [float("nan")] * 5),
    ("gemma3n", "activation_sparsity_scale", [np.inf] * 5),
    ("gemma3n", "embedding_length_per_layer_input", 0),
    ("gemma3n", "feed_forward_length", [96, 96, 0, 96, 96]),
    ("gemma3n", "attention.shared_kv_layers", 4),
    ("gemma4", "attention.value_length", 16),
    ("gemma4", "attention.key_length_swa", 0),
    ("gemma4", "attention.value_length_swa", 32),
    ("gemma4", "attention.shared_kv_layers", 4),
    ("gemma4", "attention.shared_kv_layers", 5),
    ("gemma4", "attention.head_count_kv", [2, 2, 3, 2, 1]),
    ("gemma4", "attention.head_count_kv", [2, 2, 0, 2, 1]),
    ("gemma4", "embedding_length_per_layer_input", 1 << 19),
    ("gemma4", "embedding_length_per_layer_input", -8),
    ("gemma4", "feed_forward_length", [96, 96, 96, 0, 192]),
    ("gemma4", "attention.sliding_window", None),
]


@pytest.mark.parametrize(("architecture", "key", "value"), FAULTS)
def test_settings_that_cannot_be(architecture: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        build_model(header(architecture, **{key: value}))


STATED: dict[str, dict[str, Any]] = {
    name: {
        "architectures": [f"{name}ForCausalLM"],
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "layer_types": [local, local, "full_attention", local, "full_attention"],
        **more,
    }
    for name, local, more in (
        ("Gemma3n", "sliding_attention", {"num_kv_shared_layers": 2}),
        ("Gemma4", "sliding_attention", {"num_kv_shared_layers": 2, "num_experts": None}),
        (
            "Llama4",
            "chunked_attention",
            {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1},
        ),
    )
}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("Gemma3n", "activation_sparsity_pattern", [1.5] * 5),
        ("Gemma3n", "activation_sparsity_pattern", [0.5] * 4),
        ("Gemma3n", "altup_num_inputs", 1),
        ("Gemma3n", "altup_active_idx", 4),
        ("Gemma3n", "altup_correct_scale", "no"),
        ("Gemma3n", "laurel_rank", 0),
        ("Gemma3n", "intermediate_size", [96] * 4),
        ("Gemma3n", "vocab_size_per_layer_input", 0),
        ("Gemma4", "per_layer_config", 3),
        ("Gemma4", "per_layer_config", {"1": {"head_dim": 0}}),
        ("Gemma4", "per_layer_config", {"2": {"num_attention_heads": 3}}),
        ("Gemma4", "num_key_value_heads", 3),
        ("Gemma4", "use_bidirectional_attention", "all"),
        ("Gemma4", "num_kv_shared_layers", 5),
        ("Gemma4", "num_kv_shared_layers", 4),
        ("Gemma4", "hidden_size_per_layer_input", -1),
        ("Gemma4", "enable_moe_block", "yes"),
        ("Gemma4", "global_head_dim", 0),
        ("Gemma4", "use_double_wide_mlp", 2),
        ("Llama4", "moe_layers", [5]),
        ("Llama4", "moe_layers", 3),
        ("Llama4", "attention_chunk_size", -1),
        ("Llama4", "no_rope_layers", [2] * 5),
        ("Llama4", "intermediate_size_mlp", 0),
        ("Llama4", "layer_types", ["sliding_attention"] * 5),
        ("Llama4", "use_qk_norm", 1),
    ],
)
def test_settings_of_directories_that_cannot_be(name: str, key: str, value: Any) -> None:
    with pytest.raises(MissingTensor):
        build_model(Header("huggingface", STATED[name], {}))
    with pytest.raises(ConfigError, match=key):
        build_model(Header("huggingface", {**STATED[name], key: value}, {}))


@pytest.mark.parametrize(
    ("kind", "said", "indexed"),
    [
        ("indexed_attention", {}, True),
        # As it was published; transformers writes ``per_layer_config`` beside words of its own.
        ("full_attention", {}, True),
        ("full_attention", {"per_layer_config": {}}, False),
        ("full_attention", {"per_layer_config": {}, "use_dsa": True}, True),
        ("indexed_attention", {"per_layer_config": {}}, True),
        ("indexed_attention", {"use_dsa": False}, False),
    ],
)
def test_which_layers_of_dots3_note_have_indexers(
    kind: str, said: dict[str, Any], indexed: bool
) -> None:
    stated = directories.config("Dots3Note") | {"layer_types": [kind, "sliding_attention"]}
    found = {name.split(".")[2] for name in directories.shapes(stated | said) if "indexer" in name}
    assert found == ({"0"} if indexed else set())


@pytest.mark.parametrize("key", ["sparse_topk_blocks", "sparse_block_size"])
def test_indexers_of_blocks_are_not_left_out_for_want_of_a_number(key: str) -> None:
    stated = directories.config("MiniMaxM3VL")
    assert any("index_q_proj" in name for name in directories.shapes(stated))
    sparse = {k: v for k, v in stated["sparse_attention_config"].items() if k != key}
    with pytest.raises(ConfigError, match="is missing"):
        directories.shapes(stated | {"sparse_attention_config": sparse})
