"""Synthetic models in the hands of other programs: transformers, and llama.cpp where it is.

The latter needs ``STRATA_TEST_LLAMA_CPP``, the directory that holds ``llama-quantize``.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from strata.formats import open_model
from strata.synth import SHAPES, describe, write_model

pytestmark = pytest.mark.slow

TINY = [name for name in SHAPES if name.startswith("tiny-")]
LLAMA_CPP = os.environ.get("STRATA_TEST_LLAMA_CPP")


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Iterator[Mapping[str, Any]]:
    with open_model(smollm2_path) as file:
        yield dict(file.metadata)


@pytest.mark.parametrize("name", TINY)
def test_transformers_reads_the_directory(
    tmp_path: Path, tokenizer: Mapping[str, Any], name: str
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "model"
    write_model(SHAPES[name], out, recipe=None, tokenizer=tokenizer)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = transformers.AutoTokenizer.from_pretrained(out)("Hello, world 123").input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    assert torch.isfinite(logits).all()
    # Products of normal values with weights of deviation 1 / sqrt(width) stay of that order.
    assert 0.1 < logits.std() < 30


@pytest.mark.skipif(LLAMA_CPP is None, reason="STRATA_TEST_LLAMA_CPP does not name a directory")
@pytest.mark.parametrize("recipe", ["Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "IQ4_XS"])
@pytest.mark.parametrize("name", TINY)
def test_llama_cpp_reads_the_file_and_would_mix_it_alike(
    tmp_path: Path, tokenizer: Mapping[str, Any], name: str, recipe: str
) -> None:
    assert LLAMA_CPP is not None
    path = tmp_path / "model.gguf"
    write_model(SHAPES[name], path, recipe="F16", tokenizer=tokenizer)
    tool = Path(LLAMA_CPP) / "llama-quantize"
    done = subprocess.run(
        [tool, "--dry-run", path, recipe], capture_output=True, text=True, check=True
    )
    found = {}
    row = re.compile(r"\s*\[\s*\d+/\s*\d+\]\s+(\S+)\s.*type\s*=\s*(\w+)(?:.*\((\w+)\)\s*$)?")
    for line in (done.stdout + done.stderr).splitlines():
        if match := row.match(line):
            found[match[1]] = (match[3] or match[2]).upper()
    expected = describe(SHAPES[name], recipe).tensors
    assert found == {tensor.name: tensor.type.name for tensor in expected.values()}
