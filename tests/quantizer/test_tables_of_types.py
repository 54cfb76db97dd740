"""`strata quantize --recipe` reads a table that somebody wrote: what is none is named."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from strata.errors import UsageError
from strata.quantizer.lab import read_recipe
from strata.quantizer.mixes import Facts


def test_the_first_two_columns_count(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("# types\nblk.0.ffn_up.weight q4_k 0.5 # as before\n\noutput.weight Q6_K\n")
    types = {name: type.name for name, type in read_recipe(path).items()}
    assert types == {"blk.0.ffn_up.weight": "Q4_K", "output.weight": "Q6_K"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"a Q4_K\nb \xff\n", r"table is not UTF-8 text \(byte 9\)"),
        (b"a Q4_K\nb\n", "line 2 is not 'TENSOR TYPE'"),
        (b"a Q4_K\nb \x1b[2Jx\n", r"line 2: there is no block format '\\x1b\[2Jx'$"),
        (b"a " + b"x" * 9000, r"there is no block format 'x+\.\.\.$"),
    ],
)
def test_what_is_none_is_named(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=said) as told:
        read_recipe(path)
    assert len(str(told.value)) < 400


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.touch()
    os.truncate(path, 50_000_000_000)
    with pytest.raises(UsageError, match="too large"):
        read_recipe(path)


@pytest.mark.parametrize("wrong", [math.inf, math.nan, [math.inf], [[1]], "7", ["7"], None, {}])
def test_counts_that_are_none_are_no_counts(wrong: object) -> None:
    """Of metadata that somebody wrote: mixes are chosen before a model is built from it."""
    said = {"general.architecture": "llama", "llama.block_count": wrong}
    facts = Facts.of({**said, "llama.attention.head_count": wrong}, ["output.weight"], False)
    assert (facts.layers, facts.queries) == (0, 1)
