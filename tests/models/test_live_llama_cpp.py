"""GGUF files against llama.cpp itself: our reading of names, keys and turned rows is also its own.

Needs ``STRATA_TEST_LLAMA_CPP``, the directory that holds ``llama-perplexity``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import make_tiny_models
from strata.formats import open_model
from support.forward import logits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "STRATA_TEST_LLAMA_CPP" not in os.environ,
        reason="STRATA_TEST_LLAMA_CPP does not name a directory with llama-perplexity",
    ),
]

CONTEXT = 64
# llama.cpp reads no window for these architectures; transformers and Strata do.
WINDOWLESS = {"mistral_window", "phi3_window"}
# It always runs with at least 256 positions, so the short factors of long rope are out of reach.
LONG_ONLY = {"phi3_short"}
NAMES = [
    name
    for name in make_tiny_models.names()
    if make_tiny_models.golden(name).architecture and name not in WINDOWLESS | LONG_ONLY
]
# The tool stores log-probabilities in 16 bits over a range of at most 16, and cuts lower ones off.
RANGE, STEPS = 16, 65535


def peer_log_probs(
    model: Path, text: Path, chunks: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Tokens [chunks, CONTEXT] and log-probabilities after the second half of each chunk."""
    out = model.with_suffix(".logits")
    tool = Path(os.environ["STRATA_TEST_LLAMA_CPP"]) / "llama-perplexity"
    command = [tool, "-m", model, "-f", text, "-c", CONTEXT, "-b", CONTEXT, "--chunks", chunks]
    command += ["-t", 2, "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--save-all-logits", out]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    raw = out.read_bytes()
    assert raw[:8] == b"_logits_"
    context, vocabulary, count = np.frombuffer(raw, np.int32, 3, 8)
    assert (context, count) == (CONTEXT, chunks)
    tokens = np.frombuffer(raw, np.int32, context * count, 20).reshape(count, context)
    rows = np.frombuffer(raw, np.uint16, offset=20 + 4 * tokens.size)
    rows = rows.reshape(count, CONTEXT - 1 - CONTEXT // 2, -1)
    scale, least = (rows[..., i : i + 2].copy().view(np.float32) for i in (0, 2))
    return tokens, rows[..., 4 : 4 + vocabulary] * scale + least


def tolerance(golden: make_tiny_models.Golden) -> float:
    """Half a step of the rounding, and float32 sums; the peer's GELU is a table of halves."""
    gelu = golden.config["model_type"].startswith(("gemma", "gpt2"))
    return RANGE / STEPS / 2 + (2e-2 if gelu else 5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    model = make_tiny_models.write_gguf(tmp_path / "model.gguf", golden)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {i} ring and {i * i} or {i**3 % 97}. " for i in range(40)))
    tokens, peer = peer_log_probs(model, text, chunks=2)
    with open_model(model) as file:
        for sequence, expected in zip(tokens, peer, strict=True):
            found = logits(file, sequence.tolist())[CONTEXT // 2 : -1].astype(np.float64)
            found -= found.max(axis=1, keepdims=True)
            found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
            seen = expected > expected.min(axis=1, keepdims=True)
            assert seen.mean() > 0.5
            assert np.abs(found - expected)[seen].max() < tolerance(golden)
