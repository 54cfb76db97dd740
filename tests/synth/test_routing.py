"""Routes of written models, counted in the reference: as skewed and as sticky as was asked for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata import SamplingParams
from strata.backends.reference import experts
from strata.cli import main
from strata.errors import UsageError
from strata.formats import open_model
from strata.llm import LLM
from strata.synth import SHAPES, write_model

LAYERS, EXPERTS, TOP_K = 2, 32, 4
TOKENS = 120
SHAPE = replace(
    SHAPES["tiny-qwen3moe"],
    layers=LAYERS,
    experts=EXPERTS,
    top_k=TOP_K,
    ffn=64,
    vocab=2048,
    holds=(),
)


def counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: Path, routing: Any, *, tied: bool
) -> tuple[float, float]:
    """The share of choices that the most popular quarter of the experts takes, and the chance that
    the next token chooses an expert again, while a model goes on with its own text."""
    shape = replace(SHAPE, tied=tied)
    with open_model(smollm2) as source:
        tokenizer = dict(source.metadata)
        write_model(shape, path, recipe="Q8_0", tokenizer=tokenizer, routing=routing)
    seen: list[frozenset[int]] = []
    choose = experts.choose

    def counting(ranked: Any, a: Any) -> Any:
        chosen = choose(ranked, a)
        seen.extend(frozenset(row.tolist()) for row in chosen)
        return chosen

    monkeypatch.setattr(experts, "choose", counting)
    with LLM(path, context=TOKENS + 4, backend="reference", draft="off") as llm:
        params = SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=1, ignore_eos=True)
        seen.clear()
        llm.generate([5], params)
    assert len(seen) == LAYERS * TOKENS
    popular, again = [], []
    for layer in range(LAYERS):
        routes = seen[layer::LAYERS]
        times = np.bincount([e for route in routes for e in route], minlength=EXPERTS)
        popular.append(np.sort(times)[-EXPERTS // 4 :].sum() / times.sum())
        both = pairwise(routes)
        again.append(np.mean([len(a & b) / TOP_K for a, b in both]))
    return float(np.mean(popular)), float(np.mean(again))


@pytest.mark.parametrize(
    ("routing", "tied", "popular", "again"),
    [
        ("even", False, 0.40, 0.17),
        ("skewed", False, 0.55, 0.24),
        ("sticky", False, 0.56, 0.56),
        ("sticky", True, 0.52, 0.56),
    ],
)
def test_routes_are_as_skewed_and_as_sticky_as_asked(
    tmp_path: Path,
    smollm2_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    routing: Any,
    tied: bool,
    popular: float,
    again: float,
) -> None:
    found = counted(tmp_path / "x.gguf", monkeypatch, smollm2_path, routing, tied=tied)
    assert found == (pytest.approx(popular, abs=0.06), pytest.approx(again, abs=0.06))


def test_only_mixtures_in_gguf_files_have_routes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x"
    with pytest.raises(UsageError, match="has no experts"):
        write_model(SHAPES["tiny-llama"], out, recipe="Q8_0", tokenizer={}, routing="sticky")
    with pytest.raises(UsageError, match="for GGUF files"):
        write_model(SHAPES["tiny-qwen3moe"], out, recipe=None, tokenizer={}, routing="sticky")
    assert main(["synth", "tiny-qwen3moe", str(out), "--routing", "lumpy"]) == 2
    assert "'even', 'skewed', 'sticky'" in capsys.readouterr().err
