"""Perplexity of the built-in model on WikiText-2, against values computed by others."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from strata import LLM

# Context 512, first 10 windows: transformers in float32 on the dequantised weights, and llama.cpp.
TRANSFORMERS = 23.4416
LLAMA_CPP = 23.5582

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "STRATA_TEST_WIKITEXT2" not in os.environ,
        reason="STRATA_TEST_WIKITEXT2 does not name WikiText-2's test text",
    ),
]


@pytest.fixture(scope="module")
def text() -> str:
    path = Path(os.environ["STRATA_TEST_WIKITEXT2"])
    return path.read_text(encoding="utf-8").removesuffix("\n")


def test_reference_agrees_with_transformers(smollm2_path: Path, text: str) -> None:
    with LLM(smollm2_path, backend="reference", context=512) as llm:
        result = llm.perplexity(text, context=512, chunks=10)
    assert round(result.perplexity, 2) == round(TRANSFORMERS, 2)


@pytest.mark.skipif(not importlib.util.find_spec("strata._native"), reason="no native kernels")
def test_cpu_is_close_and_no_worse_than_llama_cpp(smollm2_path: Path, text: str) -> None:
    with LLM(smollm2_path, context=512) as llm:
        result = llm.perplexity(text, context=512, chunks=10)
    assert result.perplexity == pytest.approx(TRANSFORMERS, rel=0.005)
    assert result.perplexity <= LLAMA_CPP
