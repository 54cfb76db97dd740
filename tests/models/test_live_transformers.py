"""Both kinds of file against transformers, which reads the same directories itself.

Unlike the goldens these take the directory's config.json through transformers' own reader, and run
longer sequences. Needs torch and transformers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata.formats import open_model
from support.forward import logits

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
LENGTH = 120


@pytest.mark.parametrize("name", make_tiny_models.names())
def test_tiny_model(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    golden = make_tiny_models.golden(name)
    directory = make_tiny_models.write_directory(tmp_path / "hf", golden)
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    files = [directory]
    if golden.architecture is not None:
        files.append(make_tiny_models.write_gguf(tmp_path / "model.gguf", golden))
    length = min(LENGTH, golden.context or LENGTH)
    tokens = np.random.default_rng(1).integers(0, make_tiny_models.VOCABULARY, length)
    with torch.no_grad():
        expected = peer(torch.from_numpy(tokens)[None]).logits[0].numpy()
    for path in files:
        with open_model(path) as file:
            found = logits(file, tokens.tolist(), golden.context, chunks=[50, 1, length - 51])
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=str(path))


def test_smollm2(smollm2_path: Path) -> None:
    make_goldens = pytest.importorskip("make_goldens")
    tokens = np.random.default_rng(2).integers(0, 49152, 200).tolist()
    expected = make_goldens.logits(make_goldens.smollm2(smollm2_path), tokens)
    with open_model(smollm2_path) as file:
        found = logits(file, tokens, chunks=[128, 72])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
