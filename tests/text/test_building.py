"""What a large vocabulary takes while its tokenizer is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from strata.formats.gguf_writer import write_gguf
from strata.text.bpe import BYTE_LETTERS

_MEASURE = """
import json, pathlib, sys
import numpy, tokenizers
import strata._native as native
from strata.formats import open_model
from strata.memory import peak_bytes, process_memory
from strata.text.gguf import tokenizer_from_gguf

before = process_memory().total
file = open_model(pathlib.Path(sys.argv[1]))
tokenizer = tokenizer_from_gguf(file.metadata)
ids = tokenizer.encode("tests of tests")
native.give_back_memory()
print(json.dumps([peak_bytes() - before, process_memory().total - before, tokenizer.decode(ids)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounts")
def test_a_tokenizer_is_built_without_copies_of_its_vocabulary(tmp_path: Path) -> None:
    tokens, merges = list(BYTE_LETTERS), []
    letters = "etaoinsrhldcum"
    for length in range(2, 6):
        for first in [t for t in tokens if len(t) == length - 1 and set(t) <= set(letters)]:
            for last in letters:
                if len(tokens) < 100_000:
                    tokens.append(first + last)
                    merges.append(f"{first} {last}")
    path = tmp_path / "vocabulary.gguf"
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }
    write_gguf(path, metadata, [])
    command = [sys.executable, "-c", _MEASURE, str(path)]
    peak, kept, text = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert text == "tests of tests"
    # Lists of all tokens, merges and their halves as Python's strings would be half as much again.
    assert peak < 64 * 10**6
    assert kept < 36 * 10**6
