"""Cutting text at the special tokens it spells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# C's isspace: what the strip attributes of special tokens eat.
_SPACE = " \t\n\v\f\r"


@dataclass(frozen=True)
class SpecialToken:
    """A token that is recognised in text before ordinary tokenisation."""

    id: int
    text: str
    only_on_request: bool  # control and unknown tokens; user-defined ones are always recognised
    strip_left: bool = False
    strip_right: bool = False


class SpecialTokens:
    """Longest token first, each cut out of every stretch of text left by those before it."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        self._tokens = sorted(tokens, key=lambda t: -len(t.text.encode()))
        self._always = [t for t in self._tokens if not t.only_on_request]

    def partition(self, text: str, parse_special: bool) -> list[str | int]:
        """Split `text` into ids of special tokens and the (non-empty) texts between them."""
        parts: list[str | int] = [text]
        for token in self._tokens if parse_special else self._always:
            if token.text in text:
                parts = [
                    piece
                    for part in parts
                    for piece in ([part] if isinstance(part, int) else _cut(part, token))
                ]
        return parts


def _cut(text: str, token: SpecialToken) -> Iterator[str | int]:
    while True:
        left, found, right = text.partition(token.text)
        if not found:
            if text:
                yield text
            return
        if token.strip_left:
            left = left.rstrip(_SPACE)
        if left:
            yield left
        yield token.id
        text = right.lstrip(_SPACE) if token.strip_right else right
