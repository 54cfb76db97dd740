"""The built-in model: golden logits of transformers in float32 on the same dequantised weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from make_tiny_models import GOLDENS
from strata.formats import open_model
from support.forward import logits

# Thirty layers of float32 sums; logits reach 20, where one rounding is 1e-6.
TOLERANCE = 5e-4


def test_logits_equal_those_of_transformers(smollm2_path: Path) -> None:
    golden = np.load(GOLDENS / "smollm2-logits.npz")
    with open_model(smollm2_path) as file:
        found = logits(file, golden["tokens"].tolist())
    np.testing.assert_allclose(found[-1], golden["last"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found[:, ::97], golden["sampled"], rtol=0, atol=TOLERANCE)
