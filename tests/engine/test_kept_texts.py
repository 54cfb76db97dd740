"""What texts to guess from leave on disk: theirs alone, bounded, and never an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_tiny_models
from strata import LLM
from strata.engine.kept_texts import KeptTexts
from strata.kv.store_directory import StoreDirectory, StoreError

TOKENS = np.array([5, 6, 7, -1, 8, 9, -1], np.int32)


def store(path: Path, limit: int = 1 << 20) -> StoreDirectory:
    return StoreDirectory(path, limit)


def files(path: Path) -> list[Path]:
    return sorted(path.glob("*.texts"))


def test_what_was_kept_is_there_for_the_same_model(tmp_path: Path) -> None:
    KeptTexts(store(tmp_path), "a").keep(TOKENS)
    assert KeptTexts(store(tmp_path), "a").load(100, 10).tolist() == TOKENS.tolist()
    assert KeptTexts(store(tmp_path), "a").load(3, 10).tolist() == TOKENS[-3:].tolist()
    assert KeptTexts(store(tmp_path), "b").load(100, 10).tolist() == []
    KeptTexts(store(tmp_path), "a").keep(TOKENS[:4])
    assert KeptTexts(store(tmp_path), "a").load(100, 10).tolist() == TOKENS[:4].tolist()
    assert len(files(tmp_path)) == 1
    assert files(tmp_path)[0].stat().st_mode & 0o077 == 0


def test_no_byte_of_it_may_differ(tmp_path: Path) -> None:
    KeptTexts(store(tmp_path), "a").keep(TOKENS)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert KeptTexts(store(tmp_path), "a").load(100, 10).tolist() == []
        assert not path.exists()
    for wrong in (b"", whole[:-1], whole + b"x", whole[:10]):
        path.write_bytes(wrong)
        assert KeptTexts(store(tmp_path), "a").load(100, 10).tolist() == []
    KeptTexts(store(tmp_path), "a").keep(TOKENS)
    # Another vocabulary than that for which it was kept.
    assert KeptTexts(store(tmp_path), "a").load(100, 9).tolist() == []


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    KeptTexts(store(tmp_path / "kv"), "a").keep(TOKENS)
    (path,) = files(tmp_path / "kv")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="has not made"):
        store(tmp_path / "kv")
    assert (tmp_path / "elsewhere").exists()


def test_the_bound_of_the_store_holds_for_it(tmp_path: Path) -> None:
    KeptTexts(store(tmp_path, 64), "a").keep(np.arange(60, dtype=np.int32))
    assert files(tmp_path) == []
    # What was unused for longest gives way.
    for model in "abc":
        KeptTexts(store(tmp_path, 200), model).keep(TOKENS)
    assert len(files(tmp_path)) == 2
    assert KeptTexts(store(tmp_path, 200), "c").load(100, 10).tolist() == TOKENS.tolist()


def test_guesses_begin_with_what_the_last_run_saw(tmp_path: Path) -> None:
    golden = make_tiny_models.golden("llama")
    path = make_tiny_models.write_directory(tmp_path / "model", golden)
    prompt = [3, 4, 5, 6, 7]
    params = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    said = []
    for run in range(2):
        with LLM(path, context=64, draft="suffix", kv_store=tmp_path / "kv") as llm:
            drafting = llm.engine.drafting
            assert drafting is not None
            drafting.costs = None
            said.append(llm.generate(prompt, params).token_ids)
            kept = drafting.totals.kept
        assert (kept > 10) == (run == 1), kept
    assert said[0] == said[1]
