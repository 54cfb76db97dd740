"""Headers that lie: each fault is its own error and names the key or the tensor."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest

from strata.errors import UsageError
from strata.formats import TensorInfo
from strata.models import (
    FAMILIES,
    ConfigError,
    MissingTensor,
    TensorShape,
    TensorType,
    UnexpectedTensor,
    UnknownArchitecture,
    build_model,
    families,
)
from strata.quant import by_name
from support.headers import gguf, huggingface

DROP = ...
NAN = float("nan")
ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "factor": 4.0}
GGUF_YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (huggingface("llama", architectures=["T5Model"]), "T5Model"),
        (huggingface("llama", architectures=DROP, model_type="t5"), "t5"),
        (huggingface("llama", architectures=[3], model_type=DROP), ""),
    ],
)
def test_unknown_architecture_lists_the_known(header: Any, name: str) -> None:
    with pytest.raises(UnknownArchitecture, match=f"'{name}'") as raised:
        build_model(header)
    classes = [name for name in families() if name != name.lower()]
    assert all(known in str(raised.value) for known in classes)


def test_a_file_brings_in_the_module_of_its_own_family_alone() -> None:
    code = (
        "import sys, strata.llm\nfrom strata.models import build_model\n"
        "from support.headers import huggingface\n"
        "def seen(): return [n for n in ('opt', 'mamba', 'variants', 'mixtures') "
        "if f'strata.models.{n}' in sys.modules]\n"
        "assert seen() == [], seen()\n"
        "build_model(huggingface('mamba'))\n"
        "assert seen() == ['mamba'], seen()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_row_names_what_builds() -> None:
    for row in FAMILIES.values():
        module, function = row.split(".")
        assert callable(getattr(import_module(f"strata.models.{module}"), function)), row


def test_gguf_without_architecture() -> None:
    header = gguf("llama")
    del header.metadata["general.architecture"]
    with pytest.raises(UnknownArchitecture):
        build_model(header)


def test_model_type_stands_in_for_architectures() -> None:
    header = huggingface("llama", architectures=DROP)
    assert build_model(header).segments == build_model(huggingface("llama")).segments


REQUIRED_KEYS = [
    ("huggingface", "num_hidden_layers"),
    ("huggingface", "hidden_size"),
    ("huggingface", "intermediate_size"),
    ("huggingface", "num_attention_heads"),
    ("huggingface", "max_position_embeddings"),
    ("huggingface", "rms_norm_eps"),
    ("huggingface", "vocab_size"),
    ("gguf", "block_count"),
    ("gguf", "embedding_length"),
    ("gguf", "feed_forward_length"),
    ("gguf", "attention.head_count"),
    ("gguf", "context_length"),
    ("gguf", "attention.layer_norm_rms_epsilon"),
]


@pytest.mark.parametrize(("kind", "key"), REQUIRED_KEYS)
def test_missing_key_is_named(kind: str, key: str) -> None:
    header = (gguf if kind == "gguf" else huggingface)("llama", **{key: DROP})
    with pytest.raises(ConfigError, match=f"{key}' is missing"):
        build_model(header)


@pytest.mark.parametrize(("kind", "key"), REQUIRED_KEYS)
@pytest.mark.parametrize("value", [0, -1, 2.5, "many", True, float("nan"), 1 << 62, [], [2, 3]])
def test_absurd_value_is_refused(kind: str, key: str, value: Any) -> None:
    if ("context" in key or "position" in key) and value in (2.5, 1 << 62):
        pytest.skip("'no limit' is written as a huge number, also as a float")
    header = (gguf if kind == "gguf" else huggingface)("llama", **{key: value})
    with pytest.raises((ConfigError, TensorShape), match=key.split(".")[-1]):
        build_model(header)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (huggingface("llama", num_attention_heads=5), "num_attention_heads|num_key_value_heads"),
        (huggingface("llama", num_key_value_heads=3), "'num_key_value_heads' is 3"),
        (huggingface("llama", num_attention_heads=3, num_key_value_heads=3, head_dim=DROP), "64"),
        (huggingface("llama", num_local_experts=8), "num_local_experts"),
        (huggingface("llama", quantization_config={"quant_method": "exl2"}), "'exl2'"),
        (huggingface("llama", quantization_config="aqlm"), "'aqlm'"),
        (gguf("llama", expert_count=8), r"llama\.expert_used_count"),
        (gguf("qwen2", expert_count=8), r"qwen2\.expert_count"),
        (gguf("llama", **{"attention.value_length": 8}), "value_length"),
        (gguf("llama", **{"attention.head_count_kv": [2, 1]}), "differs from layer to layer"),
        (huggingface("llama", hidden_act="gelu"), "'hidden_act' is 'gelu'"),
        (huggingface("llama", hidden_act=7), "'hidden_act' is 7"),
        (huggingface("llama", tie_word_embeddings="no"), "'tie_word_embeddings' is 'no'"),
        (huggingface("llama", rope_parameters=[1]), "'rope_parameters'"),
        (huggingface("llama", rope_parameters={"rope_type": "spiral"}), "'spiral' is not known"),
        (huggingface("llama", rope_parameters={"rope_type": "linear"}), "factor' is missing"),
        (
            huggingface("llama", rope_parameters={"rope_type": "linear", "factor": 0}),
            r"rope_parameters\.factor' is 0",
        ),
        (huggingface("llama", rope_parameters={"rope_theta": -1}), "rope_theta' is -1"),
        (gguf("llama", **{"rope.freq_base": 0.0}), "freq_base"),
        (gguf("llama", **{"rope.scaling.type": "spiral"}), "'spiral' is not known"),
        (gguf("llama", **{"rope.dimension_count": 17}), "dimension_count"),
        (gguf("qwen2", **{"rope.dimension_count": 15}), "even"),
        (
            huggingface("phi3_long", rope_parameters={"rope_type": "longrope"}),
            "long_factor': a list of 8",
        ),
        (
            huggingface(
                "phi3_long", rope_parameters={"rope_type": "longrope", "long_factor": ["a"] * 8}
            ),
            "long_factor' is 'a'",
        ),
        (huggingface("gemma3", layer_types=["full_attention"]), "'layer_types': a list of 3"),
        (huggingface("gemma3", layer_types=["full_attention", "x", "y"]), "'layer_types'"),
        (gguf("gemma3", **{"attention.sliding_window_pattern": [True]}), "lists 1 layers"),
        (huggingface("gemma3", use_bidirectional_attention=True), "bidirectional"),
        (huggingface("gemma3", layer_types=[["full_attention"]] * 3), "'layer_types'"),
        (gguf("gemma3", **{"attention.sliding_window_pattern": ["a"] * 3}), "true or false"),
        (huggingface("llama", rope_parameters={**YARN, "beta_fast": 0}), "beta_fast' is 0"),
        (huggingface("llama", rope_parameters={**YARN, "beta_slow": 0}), "beta_slow' is 0"),
        (huggingface("llama", rope_parameters={**YARN, "rope_theta": 1.0}), "rope_theta' is 1"),
        (huggingface("llama", rope_parameters={**YARN, ORIGINAL: 0}), f"{ORIGINAL}' is 0"),
        (huggingface("llama", rope_parameters={**YARN, "factor": NAN}), "factor' is nan"),
        (
            huggingface(
                "llama",
                rope_parameters={
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                },
            ),
            "high_freq_factor is 4",
        ),
        (
            huggingface(
                "phi3_long",
                original_max_position_embeddings=1,
                rope_parameters={"rope_type": "longrope", "long_factor": [1.0] * 8},
            ),
            "original context of 2",
        ),
        (
            huggingface(
                "phi3_long", rope_parameters={"rope_type": "longrope", "long_factor": [0.0] * 8}
            ),
            "long_factor' is 0",
        ),
        (gguf("llama", **{**GGUF_YARN, "rope.scaling.yarn_beta_fast": 0.0}), "beta_fast' is 0"),
        (gguf("llama", **{**GGUF_YARN, "rope.scaling.factor": 1e-300}), "factor' is 1e-300"),
        (gguf("llama", **{**GGUF_YARN, "rope.freq_base": 1.0}), "freq_base' is 1"),
        (
            gguf("llama", **{**GGUF_YARN, "rope.scaling.original_context_length": 0}),
            "original_context_length' is 0",
        ),
        (huggingface("gpt2", scale_attn_by_inverse_layer_idx=True), "inverse_layer_idx"),
        (gguf("gpt2", **{"attention.head_count_kv": 2}), "2 key heads for 4"),
        (huggingface("gpt2", activation_function="relu"), "'activation_function' is 'relu'"),
        (huggingface("opt", activation_function="tanh"), "'tanh'"),
        (huggingface("opt", layer_norm_elementwise_affine=False), "elementwise_affine"),
    ],
)
def test_settings_that_cannot_be(header: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(header)


@pytest.mark.parametrize("make", [huggingface, gguf])
@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3_long", "gpt2"])
def test_each_tensor_is_needed_and_has_one_shape(make: Any, name: str) -> None:
    header = make(name)
    optional = ("rope_f", "lm_head", "output.weight")
    for missing, info in dict(header.tensors).items():
        if missing.startswith(optional):
            continue
        del header.tensors[missing]
        with pytest.raises((MissingTensor, ConfigError), match=f"'{missing}'"):
            build_model(header)
        header.tensors[missing] = info
        if missing == "token_embd.weight" and "output.weight" not in header.tensors:
            continue  # its rows are the vocabulary, whatever their number
        shape = (info.shape[0] + 1, *info.shape[1:])
        header.tensors[missing] = TensorInfo(missing, shape, info.type, info.path, 0, 0)
        with pytest.raises(TensorShape):
            build_model(header)
        header.tensors[missing] = info
    build_model(header)


@pytest.mark.parametrize("name", ["I8", "I32"])
def test_whole_numbers_are_no_weights(name: str) -> None:
    header = huggingface("llama")
    info = header.tensors["model.norm.weight"]
    header.tensors[info.name] = replace(info, type=by_name(name))
    with pytest.raises(TensorType, match=f"'model.norm.weight' holds whole numbers .{name}"):
        build_model(header)


def test_eight_bit_directories_are_read() -> None:
    header = huggingface("llama", quantization_config={"quant_method": "fp8"})
    extra = "model.layers.0.self_attn.q_proj.input_scale"
    header.tensors[extra] = header.tensors["model.norm.weight"]
    assert build_model(header).segments == build_model(huggingface("llama")).segments


@pytest.mark.parametrize("make", [huggingface, gguf])
@pytest.mark.parametrize("extra", ["surplus.weight", "blk.2.attn_q.weight", "score.weight"])
def test_unexpected_tensor_is_named(make: Any, extra: str) -> None:
    header = make("llama")
    header.tensors[extra] = header.tensors[next(iter(header.tensors))]
    with pytest.raises(UnexpectedTensor, match=f"'{extra}'"):
        build_model(header)


def test_a_bias_that_config_denies_is_unexpected() -> None:
    with pytest.raises(UnexpectedTensor, match="bias"):
        build_model(huggingface("llama_tied_biased", attention_bias=False))


def test_fewer_layers_than_stored_is_an_error() -> None:
    with pytest.raises(UnexpectedTensor, match="more than its 1 layers"):
        build_model(huggingface("llama", num_hidden_layers=1))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama_tied_biased", "lm_head.weight"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "transformer.h.1.attn.masked_bias"),
    ],
)
def test_harmless_tensors_are_ignored(name: str, extra: str) -> None:
    header = huggingface(name)
    segments = build_model(header).segments
    header.tensors[extra] = header.tensors[next(iter(header.tensors))]
    assert build_model(header).segments == segments


@pytest.mark.parametrize("context", [0, -1, 257, 1 << 40])
def test_context_beyond_the_model_is_wrong_usage(context: int) -> None:
    with pytest.raises(UsageError, match="has up to 256"):
        build_model(huggingface("llama"), context)


def test_unlimited_context_becomes_what_positions_can_hold() -> None:
    assert (
        build_model(huggingface("llama", max_position_embeddings=1e30)).context_length == 2**31 - 1
    )
    assert build_model(huggingface("llama"), 7).context_length == 7
