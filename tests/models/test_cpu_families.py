"""Every family on the native backend: near the reference, and with bits that no cut changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from forward import Forward
from numpy.typing import NDArray

import make_tiny_models
from strata.backends.cpu import CpuBackend, available_isas
from strata.backends.kv_types import F16
from strata.backends.reference import ReferenceBackend
from strata.formats import ModelFile, open_model

NAMES = make_tiny_models.names()
GGUF_NAMES = [n for n in NAMES if make_tiny_models.golden(n).architecture is not None]


def check(file: ModelFile, golden: make_tiny_models.Golden) -> None:
    tokens = golden.tokens
    want = Forward(file, golden.context, ReferenceBackend(F16)).logits(tokens)
    for isa in available_isas():
        forward = Forward(file, golden.context, CpuBackend(threads=2, isa=isa))
        got = forward.logits(tokens)
        assert np.abs(got - want).max() <= bound(want)
        count = len(tokens)
        for chunks in ([1, count - 1], [count // 2, count - count // 2 - 1, 1]):
            assert forward.logits(tokens, chunks).tobytes() == got.tobytes()


def bound(logits: NDArray[np.float32]) -> float:
    """Both keep K and V as f16, so that all is float32 but where a last bit there falls apart.

    A few elements off by 2^-11 of themselves move the logits by less than 2^-11 of their spread.
    """
    return float(2.0**-11 * np.std(logits))


@pytest.mark.parametrize("name", NAMES)
def test_huggingface_directory(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_directory(tmp_path, golden)) as file:
        check(file, golden)


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_gguf(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_gguf(tmp_path / "m.gguf", golden)) as file:
        check(file, golden)
