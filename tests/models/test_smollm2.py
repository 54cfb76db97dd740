"""The built-in model: golden logits of transformers in float32 on the same dequantised weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from forward import Forward, logits

from make_tiny_models import GOLDENS
from strata.formats import open_model
from strata.text import load_tokenizer

# Thirty layers of float32 sums; logits reach 20, where one rounding is 1e-6.
TOLERANCE = 5e-4


def test_logits_equal_those_of_transformers(smollm2_path: Path) -> None:
    golden = np.load(GOLDENS / "smollm2-logits.npz")
    with open_model(smollm2_path) as file:
        found = logits(file, golden["tokens"].tolist())
    np.testing.assert_allclose(found[-1], golden["last"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found[:, ::97], golden["sampled"], rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_perplexity_equals_that_of_transformers(smollm2_path: Path) -> None:
    """Ten windows of 512 tokens of WikiText-2, the second half of each scored: 23.4416."""
    text = os.environ.get("STRATA_TEST_WIKITEXT")
    if text is None:
        pytest.skip("STRATA_TEST_WIKITEXT does not name WikiText-2's test file")
    losses = []
    with open_model(smollm2_path) as file:
        ids = load_tokenizer(file).encode(Path(text).read_text())
        model = Forward(file)
        for start in range(0, 5120, 512):
            window = ids[start : start + 512]
            scores = model.logits(window)[256:511].astype(np.float64)
            scores -= scores.max(axis=1, keepdims=True)
            total = np.log(np.exp(scores).sum(axis=1))
            losses.append(total - scores[np.arange(255), window[257:]])
    assert np.exp(np.mean(losses)) == pytest.approx(23.4416, abs=5e-4)
