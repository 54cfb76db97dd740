"""Arrays of strings are unpacked in runs: the same as one by one, and never past their end."""

from __future__ import annotations

import struct

import numpy as np
import pytest

import strata._native as _native
from strata.formats.gguf_values import PackedStrings


def packed(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(text)) + text for text in texts)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 3000])
def test_runs_give_what_single_strings_are(count: int) -> None:
    texts = [b"\xc4\xa0" * (i % 5) + b"\xff" * (i % 3) + str(i).encode() for i in range(count)]
    strings = PackedStrings(packed(texts), count)
    told = list(strings)
    assert [t.encode("utf-8", "surrogateescape") for t in told] == texts
    assert told == [strings[i] for i in range(count)]


def test_nothing_is_read_past_the_end() -> None:
    whole = packed([b"one", b"two"])
    assert _native.unpack_strings(whole, 0, 2) == (["one", "two"], len(whole))
    for raw, position in ((whole[:-1], 0), (whole[:15], 0), (whole, 17), (whole, 1 << 60)):
        with pytest.raises(IndexError):
            _native.unpack_strings(raw, position, 2)
    with pytest.raises(IndexError):
        _native.unpack_strings(struct.pack("<Q", (1 << 64) - 1), 0, 1)


def test_stepping_over_ends_where_a_length_is_not_there() -> None:
    whole = packed([b"one", b"", b"three"])
    step = _native.step_over_strings
    assert step(bytearray(whole), 0, 3) == (3, len(whole))
    assert step(bytearray(whole), 0, 2) == (2, 19)
    assert step(bytearray(whole), 11, 9) == (2, len(whole))
    for cut in range(len(whole)):
        # Those whose length is in the buffer, whether their text is or not.
        lengths = [at for at in (0, 11, 19) if at + 8 <= cut]
        ends = {0: 0, 1: 11, 2: 19, 3: len(whole)}
        assert step(bytearray(whole[:cut]), 0, 3) == (len(lengths), ends[len(lengths)])
    assert step(bytearray(8), 9, 1) == (0, 9)
    done, end = step(bytearray(b"\xff" * 8), 0, 2)
    assert done == 1
    assert end > 1 << 60


def test_positions_are_never_past_the_end() -> None:
    whole = packed([b"one", b"", b"three"])
    found = np.zeros(3, np.uint32)
    _native.string_positions(whole, found)
    assert found.tolist() == [0, 11, 19]
    with pytest.raises(IndexError):
        _native.string_positions(whole[:-1], found)


def test_pairs_are_cut_at_the_first_space_after_the_first_character() -> None:
    texts = ["a b", " b", "  b", "ab", "", " ", "a ", "\u0120 \udcff x", "a b c"]
    want = [("a", "b"), (" ", "b"), ("a", ""), ("\u0120", "\udcff x"), ("a", "b c")]
    assert _native.split_pairs(texts) == want
    with pytest.raises(TypeError):
        _native.split_pairs([b"a b"])
