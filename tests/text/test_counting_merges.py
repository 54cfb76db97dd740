"""Merges of a tokenizer.json are counted without building anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from strata.text.huggingface import count_merges

TRICKY = ["[ ]", '" "', "\\ \\", "a ,", "\u0120 x"]


def write(path: Path, merges: Any) -> None:
    model = {"vocab": {'["merges"': 0, "]": 1}, "merges": merges}
    text = json.dumps({"model": model}, ensure_ascii=False, indent=2)
    (path / "tokenizer.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("merges", [TRICKY, [m.split(" ") for m in TRICKY], []])
def test_both_spellings(tmp_path: Path, merges: list[Any]) -> None:
    write(tmp_path, merges)
    pairs = bool(merges) and isinstance(merges[0], list)
    assert count_merges(tmp_path) == (len(merges), pairs)


def test_no_file_and_no_merges(tmp_path: Path) -> None:
    assert count_merges(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    assert count_merges(tmp_path) == (0, False)
