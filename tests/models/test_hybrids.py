"""Families with recurrent layers that make_tiny_hybrids.py writes: llama.cpp's logits from the
reference, the reference's from the native backend, and bits that no cut and no company changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_hybrids as tiny
from strata.backends.base import NO_BLOCK, Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import F16
from strata.backends.reference import ReferenceBackend
from strata.formats import open_model
from strata.models import ConfigError, MissingTensor, TensorShape, UnexpectedTensor, build_model
from support.forward import Forward

GOLDENS = np.load(tiny.GOLDENS)


@pytest.fixture(params=tiny.names())
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with open_model(tiny.write(tmp_path / "m.gguf", request.param)) as opened:
        yield opened


def test_reference_gives_the_logits_of_llama_cpp(file: Any) -> None:
    want = GOLDENS[file.metadata["general.architecture"]].astype(np.float64)
    got = Forward(file).logits(tiny.tokens())[tiny.ROWS]
    # Both are float32: some roundings of 2^-24 a layer, which exponentials of exponentials (RWKV's
    # decays) make a few times larger.
    assert np.square(got - want).sum() / np.square(want).sum() < 1e-10


def test_native_backend_is_near_the_reference_with_bits_that_nothing_changes(file: Any) -> None:
    tokens = tiny.tokens()
    # Keys and values are rounded alike, so that no router is near enough to choose another expert.
    want = Forward(file, backend=ReferenceBackend(kv_type=F16)).logits(tokens)
    forward = Forward(file, backend=CpuBackend(threads=2))
    got = forward.logits(tokens)
    # Some element of a key may still be rounded the other way: 2^-11 of it.
    assert np.abs(got - want).max() < 2.0**-11 * np.abs(want).max()
    for threads in (1, 4):
        alone = Forward(file, backend=CpuBackend(threads=threads))
        assert alone.logits(tokens).tobytes() == got.tobytes()
    for chunks in ([1] * len(tokens), [9, 1, len(tokens) - 10]):
        assert forward.logits(tokens, chunks).tobytes() == got.tobytes()
    assert in_company(forward, tokens).tobytes() == got.tobytes()


def in_company(forward: Forward, tokens: list[int]) -> np.ndarray[Any, Any]:
    """The sequence's logits from a step that another sequence shares."""
    other, groups = tokens[3:10], forward.model.groups
    state = forward.backend.state_cache(forward.model.state, (2,) * len(groups))

    def tables(block: int) -> tuple[np.ndarray[Any, Any], ...]:
        return tuple(
            np.array([NO_BLOCK, block] if group.recurrent else [block], np.int32)
            for group in groups
        )

    step = Step(
        tokens=np.array([*other, *tokens], np.int32),
        positions=np.array([*range(len(other)), *range(len(tokens))], np.int32),
        spans=(
            Span(0, len(other), 0, tables(1)),
            Span(len(other), len(tokens), 0, tables(0)),
        ),
        logits_indices=np.arange(len(other), len(other) + len(tokens), dtype=np.int32),
    )
    values: Any = {}
    for segment in forward.segments:
        values = forward.backend.run(segment, step, state, values)
    return forward.backend.export(values, ("logits",))["logits"]


# Without a head of its own the embedding table is the head.
OPTIONAL = (
    *("exp_probs_b.bias", "ffn_gate_inp_shexp.weight", "ssm_conv1d.bias"),
    "ffn_routed_norm.weight",
)
# Indexers, which keep all positions here, are not read.
UNREAD = re.compile(r"blk\.\d+\.indexer[._].*")
# Biases of keys and so on; what mixes the first layer's values into those of the first layer.
OPTIONAL_OF_RWKV = re.compile(
    r".*\.time_mix_(receptance|key|value)\.bias|blk\.0\.time_mix_v\d\.weight"
)
# What is missing where neither of two forms is there.
OTHER_FORM = {"blk.0.attn_qkv.weight": "blk.0.ssm_in.weight"}


def test_missing_and_foreign_tensors_are_named(file: Any) -> None:
    tensors = dict(file.tensors)
    for name in sorted(tensors):
        file.tensors = {key: info for key, info in tensors.items() if key != name}
        loose = OPTIONAL_OF_RWKV.fullmatch(name) or UNREAD.fullmatch(name)
        if name == "output.weight" or name.endswith(OPTIONAL) or loose:
            build_model(file)
            continue
        with pytest.raises(MissingTensor) as raised:
            build_model(file)
        named = OTHER_FORM.get(name, name) if "ssm_in" in str(raised.value) else name
        assert f"'{named}'" in str(raised.value)
    file.tensors = {**tensors, "blk.0.other.weight": tensors["token_embd.weight"]}
    with pytest.raises(UnexpectedTensor, match="other"):
        build_model(file)


@pytest.mark.parametrize(
    ("name", "key", "value", "error"),
    [
        ("kimi-linear", "kda.head_dim", 0, ConfigError),
        ("kimi-linear", "kda.head_dim", 1 << 20, ConfigError),
        ("kimi-linear", "kda.head_dim", 16, TensorShape),
        ("kimi-linear", "ssm.conv_kernel", 1, ConfigError),
        ("kimi-linear", "attention.head_count_kv", [0], ConfigError),
        ("kimi-linear", "attention.kv_lora_rank", "x", ConfigError),
        ("bailingmoe3", "kda.gate_lower_bound", 1.0, ConfigError),
        ("bailingmoe3", "kda.gate_lower_bound", float("-inf"), ConfigError),
        ("bailingmoe3", "kda.gate_lower_bound", ..., ConfigError),
        ("bailingmoe3", "kda.safe_gate", False, ConfigError),
        ("bailingmoe3", "swiglu_clamp_exp", [0.5], ConfigError),
        ("bailingmoe3", "swiglu_clamp_shexp", [-1.0] * 4, ConfigError),
        ("kimi-k3", "attn_res.block_size", 0, ConfigError),
        ("kimi-k3", "activation.situ_beta", 0.0, ConfigError),
        ("kimi-k3", "activation.situ_linear_beta", float("nan"), ConfigError),
        ("kimi-k3", "expert_latent_length", 8, TensorShape),
        ("kimi-k3", "expert_count", ..., ConfigError),
        ("kimi-k3", "kda.gate_lower_bound", 1.0, ConfigError),
        ("glm5-next", "hyper_connection.count", 65, ConfigError),
        ("glm5-next", "hyper_connection.count", 3, TensorShape),
        ("glm5-next", "hyper_connection.epsilon", 0.0, ConfigError),
        ("glm5-next", "hyper_connection.sinkhorn_iterations", 0, ConfigError),
        ("glm5-next", "attention.indexer.kpool_select_tail", False, ConfigError),
        ("glm5-next", "attention.indexer.kpool_select_tail", ..., ConfigError),
        ("glm5-next", "rope.dimension_count", 8, ConfigError),
        ("glm5-next", "swiglu_clamp_shexp", [-1.0] * 4, ConfigError),
        ("qwen4exp", "expert_count", 0, ConfigError),
        ("qwen4exp", "hyper_connection.count", 1, ConfigError),
        ("qwen4exp", "hyper_connection.count", 3, TensorShape),
        ("qwen4exp", "hyper_connection.low_rank", ..., ConfigError),
        ("qwen4exp", "ple.layers", [4], ConfigError),
        ("qwen4exp", "ple.layers", [0, 2], ConfigError),
        ("qwen4exp", "ple.layers", [0], MissingTensor),
        ("qwen4exp", "ple.ngram_size", 1, ConfigError),
        ("qwen4exp", "ple.heads_per_ngram", 33, ConfigError),
        ("qwen4exp", "ple.conv_kernel", 16, TensorShape),
        ("qwen4exp", "ple.conv_kernel", 1, ConfigError),
        ("qwen4exp", "ple.eos_token_id", 1 << 24, ConfigError),
        ("qwen4exp", "ple.layer_multipliers", [1, 2], ConfigError),
        ("qwen4exp", "ple.head_offsets", [0, 17, 36, -1], ConfigError),
        ("qwen4exp", "ple.head_offsets", [0, 17, 36, 68], TensorShape),
        ("qwen4exp", "ple.head_vocab_sizes", [17, 0, 23, 29], ConfigError),
        ("qwen4exp", "embedding_length_per_layer_input", 0, ConfigError),
        ("qwen3next", "expert_count", ..., ConfigError),
        ("qwen3next", "ssm.time_step_rank", 3, ConfigError),
        ("qwen3next", "full_attention_interval", 0, ConfigError),
        ("qwen3next", "nextn_predict_layers", 4, ConfigError),
        ("minimax-01", "residual_scale", float("nan"), ConfigError),
        ("minimax-01", "full_attention_interval", "x", ConfigError),
        ("nemotron_h_moe", "moe_latent_size", -1, ConfigError),
        ("nemotron_h_moe", "moe_latent_size", 8, TensorShape),
        ("nemotron_h_moe", "expert_shared_feed_forward_length", 48, TensorShape),
        ("rwkv6", "wkv.head_size", 0, ConfigError),
        ("rwkv6", "wkv.head_size", 24, ConfigError),
        ("rwkv6", "wkv.head_size", 64, TensorShape),
        ("rwkv6", "time_mix_extra_dim", ..., ConfigError),
        ("rwkv6", "time_decay_extra_dim", -1, ConfigError),
        ("rwkv6", "rescale_every_n_layers", "x", ConfigError),
        ("rwkv6", "token_shift_count", 3, ConfigError),
        ("rwkv6qwen2", "attention.head_count_kv", 3, ConfigError),
        ("rwkv7", "attention.decay_lora_rank", 0, ConfigError),
        ("rwkv7", "attention.iclr_lora_rank", 8, TensorShape),
        ("rwkv7", "attention.value_residual_mix_lora_rank", 1 << 30, ConfigError),
        ("rwkv7", "attention.gate_lora_rank", 0, TensorShape),
    ],
)
def test_malformed_keys_are_named(
    name: str, key: str, value: Any, error: type[Exception], tmp_path: Path
) -> None:
    with open_model(tiny.write(tmp_path / "m.gguf", name)) as opened:
        file: Any = opened
        build_model(file)
        changed = {**file.metadata, f"{name}.{key}": value}
        file.metadata = {k: v for k, v in changed.items() if v is not ...}
        with pytest.raises(error, match=key if error is ConfigError else "blk|per_layer|output_hc"):
            build_model(file)
