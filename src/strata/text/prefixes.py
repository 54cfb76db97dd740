"""Which tokens a text begins with at a place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

Text = TypeVar("Text", str, bytes)


class Prefixes(Generic[Text]):
    """The lengths of tokens, sorted by the two letters that they begin with."""

    def __init__(self, tokens: Iterable[Text]) -> None:
        found: dict[Text, set[int]] = {}
        for token in tokens:
            if token:
                found.setdefault(token[:2], set()).add(len(token))
        self._longest_first: dict[Text, tuple[int, ...]] = {
            start: tuple(sorted(lengths, reverse=True)) for start, lengths in found.items()
        }

    def lengths(self, text: Text, at: int) -> tuple[int, ...]:
        """Of how many letters tokens may be that stand in ``text`` at ``at``, the longest first."""
        two: Text = text[at : at + 2]
        one: Text = text[at : at + 1]
        of_two: tuple[int, ...] = self._longest_first.get(two, ())
        return of_two if one == two else (*of_two, *self._longest_first.get(one, ()))
