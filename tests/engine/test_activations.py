"""Activations of 16 bits: nearer to floats, with bits that depend on the tokens alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strata import LLM
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import choose_kv_type
from strata.backends.reference import ReferenceBackend
from strata.backends.settings import BackendSettings
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from support.forward import Forward
from support.streaming import settings, units

TOKENS = np.random.default_rng(5).integers(17, 49152, 60).tolist()
EXACT = BackendSettings(activations="int16")
ISAS = [isa for isa in available_isas() if isa != "scalar"] or ["scalar"]


@pytest.fixture(scope="module")
def file(smollm2_path: Path) -> Iterator[ModelFile]:
    with open_model(smollm2_path) as opened:
        yield opened


def last(run: Forward, cuts: list[int] | None = None) -> NDArray[np.float32]:
    return run.logits(TOKENS, cuts)[-1]


def forward(file: ModelFile, threads: int, how: BackendSettings, isa: str = ISAS[0]) -> Forward:
    return Forward(file, 128, CpuBackend(threads, isa, how))


@pytest.mark.parametrize(
    "isa", [ISAS[0], *(pytest.param(isa, marks=pytest.mark.slow) for isa in ISAS[1:])]
)
def test_bits_depend_on_tokens_alone(file: ModelFile, isa: str) -> None:
    whole = last(forward(file, 1, EXACT, isa))
    names = [name for i, name in enumerate(units(file, 128)) if i % 3]
    streamed = replace(settings(names, ring=1 << 24, tile=1 << 20), activations="int16")
    for threads, how, cuts in ((3, EXACT, [1, 2, 3, 48, 6]), (2, streamed, [59, 1])):
        assert last(forward(file, threads, how, isa), cuts).tobytes() == whole.tobytes()


@pytest.mark.slow
def test_logits_are_nearer_to_those_of_floats(file: ModelFile) -> None:
    kept = choose_kv_type("f16", CpuBackend.kv_types)
    want = Forward(file, 128, ReferenceBackend(kept)).logits(TOKENS)
    far, near = (
        np.abs(forward(file, 2, how).logits(TOKENS) - want).mean()
        for how in (BackendSettings(), EXACT)
    )
    assert near < far / 10


@pytest.mark.slow
def test_a_plan_has_them_and_a_new_budget_keeps_them(smollm2_path: Path) -> None:
    options: dict[str, Any] = {"context": 128, "threads": 1, "memory": "2GB"}
    with LLM(smollm2_path, activations="int16", **options) as llm:
        assert llm.plan is not None
        assert llm.plan.activations == "int16"
        numerics = llm.runtime.backend.numerics
        answer = llm.generate("The capital of France is", {"max_tokens": 4})
        llm.set_budget("600MB")
        assert llm.runtime.backend.numerics == numerics
        assert llm.generate("The capital of France is", {"max_tokens": 4}).text == answer.text
        plan = llm.plan
    with LLM(smollm2_path, plan=plan) as again:
        # What they keep is not for each other.
        assert again.runtime.backend.numerics == numerics
        assert numerics != CpuBackend(1).numerics


def test_what_cannot_be_is_refused(smollm2_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 or int16, not 'int4'"):
        LLM(smollm2_path, activations="int4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not quantise activations"):
        LLM(smollm2_path, backend="reference", activations="int16")
