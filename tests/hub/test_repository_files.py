"""Choosing the files of a model among those of a repository."""

from __future__ import annotations

import pytest

from strata.hub.downloads import ModelNotFound
from strata.hub.repository_files import (
    choose_gguf,
    choose_safetensors,
    gguf_sets,
    quant_tag,
)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("llama-3.2-1b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("m.Q4_0.gguf", "Q4_0"),
        ("m-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("m_Q6_K.gguf", "Q6_K"),
        ("m-Q3_K_XL.gguf", "Q3_K_XL"),
        ("m-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("m-IQ4_NL-00001-of-00002.gguf", "IQ4_NL"),
        ("Q8_0/m-00001-of-00002.gguf", "Q8_0"),
        ("m-TQ1_0.gguf", "TQ1_0"),
        ("m-bf16.gguf", "BF16"),
        ("m.fp16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Qwen2-7B.gguf", None),
    ],
)
def test_the_quantisation_in_a_name(name: str, tag: str | None) -> None:
    assert quant_tag(name) == tag


def choose(*names: str, quant: str | None = None) -> str:
    sizes = {name: 1000 + position for position, name in enumerate(names)}
    return choose_gguf(gguf_sets(sizes), quant, "user/repo").files[0]


def test_the_default_prefers_the_usual_then_the_smallest() -> None:
    assert choose("a-Q8_0.gguf", "a-Q4_0.gguf", "a-Q4_K_M.gguf") == "a-Q4_K_M.gguf"
    assert choose("a-Q8_0.gguf", "a-Q4_0.gguf") == "a-Q4_0.gguf"
    assert choose("a-IQ1_S.gguf", "a-IQ2_S.gguf") == "a-IQ1_S.gguf"
    assert choose("plain.gguf") == "plain.gguf"


def test_a_plain_tag_is_not_one_with_a_prefix() -> None:
    names = ("a-UD-Q4_K_XL.gguf", "a-UD-Q4_K_M.gguf", "a-Q4_K_M.gguf")
    assert choose(*names) == "a-Q4_K_M.gguf"
    assert choose(*names, quant="Q4_K_M") == "a-Q4_K_M.gguf"
    assert choose(*names, quant="ud-q4_k_m") == "a-UD-Q4_K_M.gguf"
    assert choose(*names, quant="q4_k_xl") == "a-UD-Q4_K_XL.gguf"


def test_tags_match_whole() -> None:
    for quant in ("Q4_K", "Q4", "K_M", "4_K_M"):
        with pytest.raises(ModelNotFound, match="no GGUF called"):
            choose("a-Q4_K_M.gguf", quant=quant)
    with pytest.raises(ModelNotFound, match="no GGUF called Q4_NL"):
        choose("a-IQ4_NL.gguf", quant="Q4_NL")


def test_two_models_of_one_quantisation_are_ambiguous() -> None:
    with pytest.raises(ModelNotFound, match=r"several .* user/repo/a-Q4_0\.gguf"):
        choose("a-Q4_0.gguf", "b-Q4_0.gguf", quant="q4_0")


def test_split_sets_are_grouped_and_incomplete_ones_left_out() -> None:
    sizes = {f"a-Q8_0-0000{part}-of-00003.gguf": part for part in (3, 1, 2)}
    (found,) = gguf_sets({**sizes, "b-Q8_0-00001-of-00002.gguf": 9, "mmproj-a-f16.gguf": 1})
    assert found.files == tuple(f"a-Q8_0-0000{part}-of-00003.gguf" for part in (1, 2, 3))
    assert found.size == 6


def test_safetensors_choices() -> None:
    base = ["config.json", "tokenizer.json", "README.md", "model.bin"]
    assert choose_safetensors(base, None) is None
    assert choose_safetensors(["model.safetensors"], None) is None
    assert choose_safetensors([*base, "model.safetensors", "model.fp16.safetensors"], None) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    odd = [*base, "weights.safetensors", "consolidated.00.safetensors", "adapter_model.safetensors"]
    assert choose_safetensors(odd, None) == ["config.json", "tokenizer.json", "weights.safetensors"]
