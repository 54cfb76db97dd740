"""Every architecture that is a row of variants.py, from a tiny GGUF file with all of its tensors:
llama.cpp's logits from the reference, the reference's from the native backend, and bits that no cut
and no company changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_variants as tiny
from strata import LLM
from strata.backends.base import Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import F16
from strata.backends.reference import ReferenceBackend
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from strata.models import (
    ConfigError,
    MissingTensor,
    TensorShape,
    UnexpectedTensor,
    UnknownArchitecture,
    build_model,
)
from strata.models.variants import GGUF
from support.forward import Forward
from support.headers import huggingface

GOLDENS = np.load(tiny.GOLDENS)
# llama.cpp's form of these has tensors of another model inside, or a fixed vocabulary. Those that
# embed have no logits: test_live_encoders.py holds them against transformers.
WITHOUT_GOLDEN = {"cogvlm", "qwen3tts", "eurobert", "gemma-embedding", "modern-bert"}


@pytest.fixture(params=tiny.names())
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with open_model(tiny.write(tmp_path / "m.gguf", request.param)) as opened:
        yield opened


def name_of(file: ModelFile) -> str:
    return str(file.metadata["general.architecture"])


def test_reference_gives_the_logits_of_llama_cpp(file: ModelFile) -> None:
    name = name_of(file)
    if name in WITHOUT_GOLDEN:
        assert name not in GOLDENS
        return
    want = GOLDENS[name].astype(np.float64)
    got = Forward(file).logits(tiny.tokens())[tiny.ROWS]
    # llama.cpp's GELU is a table in float16: 2^-11 of each value, where all else is float32.
    limit = 1e-6 if "gelu" in GGUF[name].activation else 1e-11
    assert np.square(got - want).sum() / np.square(want).sum() < limit


def test_native_backend_is_near_the_reference_with_bits_that_nothing_changes(
    file: ModelFile,
) -> None:
    tokens = tiny.tokens()
    want = Forward(file, backend=ReferenceBackend(kv_type=F16)).logits(tokens)
    exact = Forward(file).logits(tokens)
    # As in test_cpu_families: both round K and V, some elements up here and down there.
    bound = np.abs(want - exact).max() + 1e-4 * max(1, np.abs(exact).max())
    forward = Forward(file, backend=CpuBackend(threads=2))
    got = forward.logits(tokens)
    assert np.abs(got - want).max() <= bound
    alone = Forward(file, backend=CpuBackend(threads=1))
    assert alone.logits(tokens).tobytes() == got.tobytes()
    if GGUF[name_of(file)].causal:
        for chunks in ([1, len(tokens) - 1], [9, 1, len(tokens) - 10]):
            assert forward.logits(tokens, chunks).tobytes() == got.tobytes()
    assert in_company(forward, tokens).tobytes() == got.tobytes()


def in_company(forward: Forward, tokens: list[int]) -> np.ndarray[Any, Any]:
    """The sequence's logits from a step that another sequence shares."""
    other, groups = tokens[3:10], len(forward.model.groups)
    state = forward.backend.state_cache(forward.model.state, (2,) * groups)
    first, second = (np.array([block], np.int32) for block in (1, 0))
    step = Step(
        tokens=np.array([*other, *tokens], np.int32),
        positions=np.array([*range(len(other)), *range(len(tokens))], np.int32),
        spans=(
            Span(0, len(other), 0, (first,) * groups),
            Span(len(other), len(tokens), 0, (second,) * groups),
        ),
        logits_indices=np.arange(len(other), len(other) + len(tokens), dtype=np.int32),
    )
    values: Any = {}
    for segment in forward.segments:
        values = forward.backend.run(segment, step, state, values)
    result = forward.model.segments[-1].outputs[0]
    return forward.backend.export(values, (result,))[result]


def test_missing_and_foreign_tensors_are_named(file: ModelFile) -> None:
    found = [f"blk.0.ffn_down{kind}.weight" for kind in ("_exps", "")]
    first = next(key for key in found if key in file.tensors)
    tensors = dict(file.tensors)
    table = tensors["token_embd.weight"]
    info = tensors.pop(first)
    file.tensors = tensors  # type: ignore[misc]
    with pytest.raises(MissingTensor, match=r"blk\.0\.ffn_down"):
        build_model(file)
    file.tensors = {**tensors, first: info, "blk.0.ffn_other.weight": table}  # type: ignore[misc]
    with pytest.raises(UnexpectedTensor, match="ffn_other"):
        build_model(file)


@pytest.mark.parametrize(
    ("name", "key", "value", "error"),
    [
        ("openelm", "attention.head_count", [4], ConfigError),
        ("openelm", "attention.head_count", [0, 0], ConfigError),
        ("openelm", "attention.head_count", [4, -1], ConfigError),
        ("openelm", "attention.head_count_kv", [3, 1], ConfigError),
        ("deci", "feed_forward_length", ["x", 1], ConfigError),
        ("deci", "feed_forward_length", [48, 40], TensorShape),
        ("mpt", "attention.max_alibi_bias", -8.0, ConfigError),
        ("mpt", "attention.clamp_kqv", float("nan"), ConfigError),
        ("gptneox", "use_parallel_residual", 3, ConfigError),
        ("jais", "attention.max_alibi_bias", "x", ConfigError),
        ("granite_swa", "attention.rope_pattern", [1], ConfigError),
        ("mistral3", "attention.temperature_scale", "high", ConfigError),
        ("nanbeige", "num_loops", 2, ConfigError),
        ("nanbeige", "num_loops", 0, ConfigError),
        ("minicpm", "logit_scale", -1.0, ConfigError),
    ],
)
def test_malformed_keys_are_named(
    name: str, key: str, value: Any, error: type[Exception], tmp_path: Path
) -> None:
    with open_model(tiny.write(tmp_path / "m.gguf", name)) as file:
        build_model(file)
        file.metadata = {**file.metadata, f"{name}.{key}": value}  # type: ignore[misc]
        match = "ffn" if error is TensorShape else key.rsplit(".", 1)[-1]
        with pytest.raises(error, match=match):
            build_model(file)


@pytest.mark.parametrize("alpha", [[0.1], "x", [float("inf"), 0.1]])
def test_malformed_parameters_of_xielu_are_named(alpha: Any, tmp_path: Path) -> None:
    with open_model(tiny.write(tmp_path / "m.gguf", "apertus")) as file:
        file.metadata = {**file.metadata, "xielu.alpha_n": alpha}  # type: ignore[misc]
        with pytest.raises(ConfigError, match=r"xielu\.alpha_n"):
            build_model(file)


@pytest.mark.parametrize("name", ["dream", "llada", "llada-moe", "rnd1"])
def test_what_sees_a_whole_text_is_not_run_token_by_token(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not continue it"):
        LLM(str(tiny.write(tmp_path / "m.gguf", name)))


def test_directories_of_these_architectures_are_refused_by_name() -> None:
    header = huggingface("llama", architectures=..., model_type="arcee")
    with pytest.raises(UnknownArchitecture, match="'arcee' is known from GGUF files only"):
        build_model(header)


def test_temperature_is_applied_beyond_its_floor(tmp_path: Path) -> None:
    keys = {"attention.temperature_scale": 0.5, "rope.scaling.original_context_length": 8}
    with open_model(tiny.write(tmp_path / "m.gguf", "mistral3", **keys)) as file:
        got = Forward(file).logits(tiny.tokens())
    with open_model(tiny.write(tmp_path / "n.gguf", "mistral3")) as file:
        usual = Forward(file).logits(tiny.tokens())
    assert np.array_equal(got[:8], usual[:8])
    assert np.abs(got[8:] - usual[8:]).max() > 1e-3
