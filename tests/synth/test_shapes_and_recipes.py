"""Shapes have the published numbers of parameters, recipes the formats of llama-quantize."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from math import prod
from pathlib import Path

import pytest

from strata.errors import UsageError
from strata.models import build_model
from strata.synth import RECIPES, SHAPES, describe, find_shape, with_layers
from strata.synth.outline import HUGGING_FACE

# As the safetensors files on the hub count them.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "lfm2-1.2b": 1_170_340_608,
    "mamba2-2.7b": 2_702_599_680,
}
# Of mixtures, as their publishers round them: billions, and bytes of a published file.
BILLIONS = {
    "mixtral-8x7b": 46.7,
    "qwen3-30b-a3b": 30.5,
    "qwen3.6-35b-a3b": 35.0,
    "qwen3.5-0.8b": 0.75,
    "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 116.8,
    "deepseek-v2-lite": 15.7,
    "deepseek-v3": 671.0,
    "glm-4.5-air": 106.8,
    "lfm2-8b-a1b": 8.34,
    "granite-4-h-tiny": 6.94,
    "gemma-4-26b-a4b": 25.2,
    "rwkv7-1.5b": 1.53,
}
BOTH = [name for name, shape in SHAPES.items() if shape.family in HUGGING_FACE]
ONLY_GGUF = [name for name in SHAPES if name not in BOTH]
# Counts of formats by kind of matrix, from `llama-quantize --dry-run` on files of these shapes.
DRY_RUNS = json.loads(
    (Path(__file__).parents[1] / "goldens" / "llama_quantize_types.json").read_text()
)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    tensors = describe(SHAPES[name], None).tensors.values()
    assert sum(prod(t.shape) for t in tensors) == PARAMETERS[name]


@pytest.mark.parametrize("name", BILLIONS)
def test_a_mixture_has_the_published_number_of_parameters(name: str) -> None:
    tensors = describe(SHAPES[name], "Q4_K_M").tensors.values()
    assert sum(prod(t.shape) for t in tensors) / 1e9 == pytest.approx(BILLIONS[name], rel=0.02)


def test_experts_in_mxfp4_take_the_bytes_of_the_published_files() -> None:
    assert describe(SHAPES["gpt-oss-20b"], "MXFP4").nbytes == pytest.approx(12.1e9, rel=0.01)
    assert describe(SHAPES["gpt-oss-120b"], "MXFP4").nbytes == pytest.approx(63.4e9, rel=0.01)


@pytest.mark.parametrize("name", ONLY_GGUF)
def test_a_mixture_has_its_layers_and_no_directory(name: str) -> None:
    shape = SHAPES[name]
    model = build_model(describe(shape, "Q4_K_M"))
    assert (model.vocab_size, model.context_length) == (shape.vocab, shape.context)
    assert len(model.segments) == shape.layers + 2
    with pytest.raises(UsageError, match="leave --format out"):
        describe(shape, None)


@pytest.mark.parametrize("name", [*BILLIONS, "llama-3.2-1b", "gemma-3-1b"])
def test_a_quarter_of_the_layers_is_the_first_of_them(name: str) -> None:
    shape = SHAPES[name]
    few = with_layers(shape, shape.layers // 4)
    assert len(build_model(describe(few, "F16")).segments) == shape.layers // 4 + 2
    whole = describe(shape, "F16").tensors
    for tensor in describe(few, "F16").tensors.values():
        assert (tensor.shape, tensor.type) == (whole[tensor.name].shape, whole[tensor.name].type)
    assert with_layers(shape, shape.layers) is shape
    with pytest.raises(UsageError, match=f"has {shape.layers} layers"):
        with_layers(shape, shape.layers + 1)


@pytest.mark.parametrize("name", BOTH)
def test_both_headers_describe_the_same_model(name: str) -> None:
    shape = SHAPES[name]
    gguf, huggingface = (build_model(describe(shape, recipe)) for recipe in ("Q4_K_M", None))
    assert (gguf.vocab_size, gguf.context_length) == (shape.vocab, shape.context)
    assert (gguf.state, gguf.width) == (huggingface.state, huggingface.width)
    assert len(gguf.segments) == len(huggingface.segments) == shape.layers + 2
    for a, b in zip(gguf.segments, huggingface.segments, strict=True):
        assert {(w.name, w.shape) for w in b.weights} <= {(w.name, w.shape) for w in a.weights}


@pytest.mark.parametrize("recipe", next(iter(DRY_RUNS.values())))
@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_recipe_mixes_formats_as_llama_quantize_does(name: str, recipe: str) -> None:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for t in describe(SHAPES[name], recipe).tensors.values():
        if t.type.name != "F32":
            counted[t.name.removesuffix(".weight").rpartition(".")[2]][t.type.name] += 1
    assert counted == DRY_RUNS[name][recipe]


def test_which_layers_get_more_bits() -> None:
    tensors = describe(SHAPES["llama-3.1-8b"], "Q4_K_M").tensors
    more = [i for i in range(32) if tensors[f"blk.{i}.ffn_down.weight"].type.name == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_names_are_found_in_any_case_and_near_ones_are_offered() -> None:
    assert find_shape("Llama-3.1-8B") is SHAPES["llama-3.1-8b"]
    with pytest.raises(UsageError, match=r"'llama-3\.1-8'; did you mean llama-3\.1-8b"):
        find_shape("llama-3.1-8")
    with pytest.raises(UsageError, match=r"'Q4_K_X' .* Q4_K_M"):
        describe(SHAPES["tiny-llama"], "Q4_K_X")
    assert describe(SHAPES["tiny-llama"], "q8_0").nbytes > 0
    assert all(RECIPES[name][0] for name in RECIPES)
