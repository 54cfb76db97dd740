"""Logits of every family against those of transformers in float32, from both kinds of file.

The bound: a logit is a sum of some hundred float32 products of size 1; two orders of summation over
two or three layers differ by some 1e-5, and a wrong hyperparameter by more than 1e-1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata.formats import open_model
from support.forward import logits

TOLERANCE = 1e-4
NAMES = make_tiny_models.names()
GGUF_NAMES = [n for n in NAMES if make_tiny_models.golden(n).architecture is not None]


@pytest.mark.parametrize("name", NAMES)
def test_huggingface_directory(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_directory(tmp_path, golden)) as file:
        found = logits(file, golden.tokens, golden.context)
    np.testing.assert_allclose(found[golden.rows], golden.logits(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_gguf(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_gguf(tmp_path / "m.gguf", golden)) as file:
        found = logits(file, golden.tokens, golden.context)
    np.testing.assert_allclose(found[golden.rows], golden.logits(), rtol=0, atol=TOLERANCE)
