"""Directories of every family quantised: the file, and the same on the fly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata.cli import main
from strata.errors import UsageError
from strata.formats import open_model
from strata.quantizer.copies import quantised_copy
from support.forward import logits


def check_quantised(directory: Path, tokens: list[int]) -> bool:
    """A directory that runs with `--quantize` gives the bits of the file that `strata quantize`
    writes, or both refuse it with the same line. Whether there is a file."""
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.exists():
        tokenizer.write_text(json.dumps(make_tiny_models._tokenizer()))
    out = directory / "quantised.gguf"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("STRATA_HOME", str(directory / "home"))
        code = main(["quantize", str(directory), str(out), "--type", "Q8_0", "-q", "-t", "1"])
        if code:
            with pytest.raises(UsageError) as refused:
                quantised_copy(directory, "Q8_0", threads=1)
            assert (code, "\n" in str(refused.value)) == (2, False)
            assert not list(directory.glob("quantised.gguf*"))
            return False
        copy = quantised_copy(directory, "Q8_0", threads=1)
    with open_model(copy) as fly, open_model(out) as file:
        assert np.array_equal(logits(fly, tokens), logits(file, tokens))
        types = {info.type.name for info in file.tensors.values()}
    # Rows of a few dozen numbers stay in F16 where 32 do not divide them.
    assert types & {"Q8_0", "F16"}
    return True
