"""Every family on the native backend: near the reference, and with bits that no cut changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.kv_types import F16
from strata.backends.reference import ReferenceBackend
from strata.formats import ModelFile, open_model
from support.copying_backend import CopyingBackend
from support.forward import Forward

NAMES = make_tiny_models.names()
TOLERANCE = 1e-4
GGUF_NAMES = [n for n in NAMES if make_tiny_models.golden(n).architecture is not None]


def check(file: ModelFile, golden: make_tiny_models.Golden) -> None:
    tokens = golden.tokens
    want = Forward(file, golden.context, ReferenceBackend(kv_type=F16)).logits(tokens)
    exact = Forward(file, golden.context).logits(tokens)
    # Both round K and V to f16, some elements up here and down there: that moves the logits by
    # less than rounding all of them does. The rest is float32, as in test_goldens.
    bound = np.abs(want - exact).max() + TOLERANCE
    copying = CopyingBackend(CpuBackend(threads=2))
    best = Forward(file, golden.context, copying).logits(tokens, [1, len(tokens) - 1])
    assert best.tobytes() == Forward(file, golden.context, copying.inner).logits(tokens).tobytes()
    for isa in available_isas():
        forward = Forward(file, golden.context, CpuBackend(threads=2, isa=isa))
        got = forward.logits(tokens)
        assert np.abs(got - want).max() <= bound
        count = len(tokens)
        for chunks in ([1, count - 1], [count // 2, count - count // 2 - 1, 1]):
            assert forward.logits(tokens, chunks).tobytes() == got.tobytes()


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
