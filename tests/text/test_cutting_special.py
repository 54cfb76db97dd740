"""Special tokens are cut out of text as one after the other would be, in linear time."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from strata.text import special
from strata.text.special import SpecialToken, SpecialTokens


def one_after_the_other(
    tokens: list[SpecialToken], text: str, parse_special: bool
) -> list[str | int]:
    parts: list[str | int] = [text]
    for token in sorted(tokens, key=lambda t: -len(t.text.encode())):
        if parse_special or not token.only_on_request:
            parts = [q for p in parts for q in ([p] if isinstance(p, int) else cut(p, token))]
    return [p for p in parts if p != ""]


def cut(text: str, token: SpecialToken) -> list[str | int]:
    parts: list[str | int] = []
    while True:
        left, found, right = text.partition(token.text)
        if not found:
            return [*parts, text]
        parts += [left.rstrip(" \t\n\v\f\r") if token.strip_left else left, token.id]
        text = right.lstrip(" \t\n\v\f\r") if token.strip_right else right


@given(
    texts=st.lists(st.text("<ab> ", min_size=1, max_size=4), min_size=1, max_size=5, unique=True),
    flags=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=5, max_size=5),
    text=st.text("<ab> \n\u2003é", max_size=40),
    parse_special=st.booleans(),
)
def test_as_one_after_the_other(
    texts: list[str], flags: list[tuple[bool, bool, bool]], text: str, parse_special: bool
) -> None:
    tokens = [SpecialToken(n, t, *flags[n]) for n, t in enumerate(texts)]
    found = list(SpecialTokens(tokens).partition(text, parse_special))
    assert found == one_after_the_other(tokens, text, parse_special)


def test_the_time_is_linear() -> None:
    """Characters looked at: those of every slice, and lines run."""

    class Counted(str):
        copied = 0

        def __getitem__(self, key: Any) -> str:
            part = super().__getitem__(key)
            Counted.copied += len(part)
            return part

        def partition(self, sep: str) -> Any:
            found = super().partition(sep)
            Counted.copied += len(self)
            return found[0], found[1], Counted(found[2])

    tokens = SpecialTokens(
        [SpecialToken(1, "<|a|>", False), SpecialToken(2, "<|b|>", False, True, True)]
    )
    text = Counted("<|a|>x <|b|> " * 2000)
    lines = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename == special.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parts = list(tokens.partition(text, True))
    finally:
        sys.settrace(before)
    assert parts == [1, "x", 2] * 2000
    assert Counted.copied < 4 * len(text)
    assert lines < 10 * len(text)
