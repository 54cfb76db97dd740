"""Words that stay whole on a terminal: what is written is played on a small one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.cli.word_wrap import WordWrap


def played(written: str, width: int) -> list[str]:
    """Lines on a terminal of ``width`` columns, which breaks what does not fit."""
    lines = [""]
    for sequence, char in re.findall(r"\x1b\[(\d*[DK])|(.)", written, re.DOTALL):
        if sequence == "K":
            continue
        if sequence:
            lines[-1] = lines[-1][: len(lines[-1]) - int(sequence[:-1])]
        elif char == "\n":
            lines.append("")
        else:
            if len(lines[-1]) == width:
                lines.append("")
            lines[-1] += char
    return lines


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_words_go_to_the_next_line_as_a_whole(size: int) -> None:
    text = "the quick brown fox jumps over\nthe lazy dog"
    wrap = WordWrap(12)
    written = "".join(wrap.feed(text[i : i + size]) for i in range(0, len(text), size))
    lines = [line.rstrip() for line in played(written, 12)]
    assert lines == ["the quick", "brown fox", "jumps over", "the lazy", "dog"]


def test_code_and_long_words_are_left_to_the_terminal() -> None:
    code = "```\nx = [1, 2, 3, 4, 5, 6]\n```\n"
    assert WordWrap(12).feed(code) == code
    assert "".join(played(WordWrap(5).feed("abcdefghij"), 5)) == "abcdefghij"


def test_wide_characters_take_two_columns() -> None:
    assert WordWrap(6).feed("日本 語語") == "日本 \n語語"


@given(st.text("ab \n"), st.integers(4, 20))
def test_nothing_is_lost(text: str, width: int) -> None:
    lines = played(WordWrap(width).feed(text), width)
    assert all(len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    if all(len(word) < width for word in text.split()):
        assert " ".join(lines).split() == text.split()
