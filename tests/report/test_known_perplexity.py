"""Perplexity of the built-in model on WikiText-2, against values computed by others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("strata._native")

from strata import LLM
from strata.backends.cpu.host import available_isas

# Context 512, first 10 windows: transformers in float32 on the dequantised weights, and llama.cpp.
TRANSFORMERS = 23.4416
LLAMA_CPP = 23.5582

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "STRATA_TEST_WIKITEXT" not in os.environ,
        reason="STRATA_TEST_WIKITEXT does not name WikiText-2's test text",
    ),
]


@pytest.fixture(scope="module")
def text() -> str:
    path = Path(os.environ["STRATA_TEST_WIKITEXT"])
    return path.read_text(encoding="utf-8").removesuffix("\n")


def test_reference_agrees_with_transformers(smollm2_path: Path, text: str) -> None:
    with LLM(smollm2_path, backend="reference", context=512) as llm:
        result = llm.perplexity(text, context=512, chunks=10)
    # Four digits; the fourth decimal is at the mercy of the order of float32 sums.
    assert result.perplexity == pytest.approx(TRANSFORMERS, abs=5e-4)


@pytest.mark.parametrize("isa", [isa for isa in available_isas() if isa != "scalar"])
def test_cpu_is_close_and_no_worse_than_llama_cpp(
    smollm2_path: Path, text: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_ISA", isa)
    with LLM(smollm2_path, context=512) as llm:
        result = llm.perplexity(text, context=512, chunks=10)
    assert result.perplexity == pytest.approx(TRANSFORMERS, rel=0.005)
    assert result.perplexity <= LLAMA_CPP
