"""Arrays of strings are unpacked in runs: the same as one by one, and never past their end."""

from __future__ import annotations

import struct

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
