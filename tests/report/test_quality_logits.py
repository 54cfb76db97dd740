"""Kept logits: the bits that went in, taken up where they were left, and nothing else taken for
them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strata.errors import UsageError
from strata.formats.errors import DiskFullError
from strata.report import perplexity
from strata.report.quality import kept_logits
from strata.report.quality.compare import Windows, compare, keep_logits
from strata.report.quality.figures import TokenFigures, summarize
from strata.report.quality.kept_logits import KeptLogits, KeptLogitsError, LogitsOf, peek
from support.fake_model import VOCABULARY, fake_engine

TOKENS = np.random.Generator(np.random.PCG64(5)).integers(0, VOCABULARY, 70).tolist()
WINDOWS = Windows(TOKENS, context=16, bos=1)
OF = LogitsOf("digest", "m.gguf", "cpu f16", WINDOWS.digest, 16, 8, WINDOWS.count, VOCABULARY)


def whole(path: Path) -> bytes:
    path.unlink(missing_ok=True)
    with KeptLogits.kept(path, OF) as kept:
        keep_logits(fake_engine(), WINDOWS, kept)
    return path.read_bytes()


def test_what_comes_back_is_what_the_engine_gave(tmp_path: Path) -> None:
    whole(tmp_path / "kept")
    with KeptLogits.kept(tmp_path / "kept", OF) as kept:
        assert kept.complete == WINDOWS.count == 4
        for number in range(4):
            given: list[np.ndarray] = []
            fake_engine().visit_logits(
                WINDOWS[number], WINDOWS.first, lambda r, to=given: to.extend(np.copy(r))
            )
            found = [row.copy() for row in kept.rows(number)]
            assert np.array_equal(np.array(found), np.array(given))


@pytest.mark.parametrize("cut", [0, 1, 5000, 4096 + 4 * 7 * VOCABULARY, -1, -5])
def test_a_run_that_was_ended_is_taken_up(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "kept"
    data = whole(path)
    path.write_bytes(data[:cut])
    if 0 < cut < 4096:
        with pytest.raises(KeptLogitsError, match=r"delete it|not a file of logits"):
            KeptLogits.kept(path, OF)
        return
    done: list[int] = []
    with KeptLogits.kept(path, OF) as kept:
        before = kept.complete
        keep_logits(fake_engine(), WINDOWS, kept, progress=done.append)
    assert done == list(range(before + 1, 5))
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "other"}, "base model differs"),
        ({"tokens": "other"}, "the text"),
        ({"windows": 3}, "number of windows"),
        ({"numerics": "cpu q8_0"}, "KV type"),
    ],
)
def test_logits_of_something_else_are_refused(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    whole(tmp_path / "kept")
    with pytest.raises(KeptLogitsError, match=said):
        KeptLogits.kept(tmp_path / "kept", replace(OF, **changed))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    data = bytearray(whole(path))
    data[4096 + 4 * 7 * VOCABULARY + 4 + 30] ^= 4
    path.write_bytes(data)
    with KeptLogits.kept(path, OF) as kept:
        list(kept.rows(0))
        with pytest.raises(KeptLogitsError, match="window 2 is damaged"):
            list(kept.rows(1))


@pytest.mark.parametrize("data", [b"GGUF" * 10, b"STRLOGIT" + b"\xff" * 8, b"STRLOGIT" + bytes(8)])
def test_hostile_files_are_one_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "kept").write_bytes(data)
    with pytest.raises(KeptLogitsError):
        peek(tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == data


def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    real, left = os.pwrite, [3]

    def full(fd: int, data: object, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, data, at)  # type: ignore[arg-type]

    path = tmp_path / "kept"
    with monkeypatch.context() as patched, KeptLogits.kept(path, OF) as kept:
        patched.setattr(kept_logits.os, "pwrite", full)
        with pytest.raises(DiskFullError, match="what is there is kept"):
            keep_logits(fake_engine(), WINDOWS, kept)
    with KeptLogits.kept(path, OF) as kept:
        assert kept.complete == 1


def test_a_disk_without_room_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path, nbytes: int, what: str) -> None:
        raise DiskFullError(f"{what} takes {nbytes} bytes")

    monkeypatch.setattr(kept_logits, "check_room", full)
    with pytest.raises(DiskFullError, match="the base's logits"):
        KeptLogits.kept(tmp_path / "kept", OF)
    assert not (tmp_path / "kept").exists()
    # What an earlier run has left stays.
    (tmp_path / "earlier").touch()
    with pytest.raises(DiskFullError, match="the base's logits"):
        KeptLogits.kept(tmp_path / "earlier", OF)
    assert (tmp_path / "earlier").exists()


def test_a_model_beside_its_own_logits_and_its_perplexity(tmp_path: Path) -> None:
    with KeptLogits.scratch(tmp_path, OF) as kept:
        assert list(tmp_path.iterdir()) == []
        keep_logits(fake_engine(), WINDOWS, kept)
        figures = TokenFigures(WINDOWS.count, WINDOWS.each, against=True)
        seen: list[int] = []
        compare(fake_engine(), WINDOWS, figures, kept, progress=seen.append)
    found = summarize(figures, WINDOWS.first)
    assert seen == [1, 2, 3, 4]
    assert found.kl is not None
    assert found.kl.value == 0
    plain = perplexity(fake_engine(), TOKENS, context=16, bos=1)
    # Sums of the same numbers, by windows there.
    assert found.perplexity.value == pytest.approx(plain.perplexity, rel=1e-14)


def test_in_parts_is_as_in_one(tmp_path: Path) -> None:
    """As where the disk has no room for the logits of all windows."""
    figures = TokenFigures(WINDOWS.count, WINDOWS.each, against=True)
    for offset, count in ((0, 3), (3, 1)):
        with KeptLogits.scratch(tmp_path, replace(OF, windows=count)) as kept:
            keep_logits(fake_engine(), WINDOWS, kept, offset=offset)
            compare(fake_engine(), WINDOWS, figures, kept, offset=offset, count=count)
    assert figures.complete == 4
    assert np.array_equal(figures.nll, figures.base_nll)


@pytest.mark.parametrize("chunks", [None, 9])
def test_a_text_that_is_too_short(chunks: int | None) -> None:
    with pytest.raises(UsageError, match="the text has 70 tokens"):
        Windows(TOKENS, context=80 if chunks is None else 16, chunks=chunks)
