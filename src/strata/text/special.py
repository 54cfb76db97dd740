"""Cutting text at the special tokens it spells."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from strata.giving_way import give_way
from strata.records import dataclass

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

    def partition(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """Split `text` into ids of special tokens and the (non-empty) texts between them.

        Time is linear in the text, for each token that is in it.
        """
        tokens = self._tokens if parse_special else self._always
        taken = bytearray()  # of each character, whether it is in a token or stripped beside one
        starts, ends, ids = array("q"), array("q"), array("q")
        for token in tokens:
            at = text.find(token.text)
            if at >= 0 and not taken:
                taken = bytearray(len(text))
            while at >= 0:
                give_way()
                end = at + len(token.text)
                last = taken.rfind(1, at, end)
                if last >= 0:
                    at = text.find(token.text, last + 1)
                    continue
                start = at
                while token.strip_left and start and _is_free_space(text, taken, start - 1):
                    start -= 1
                while token.strip_right and end < len(text) and _is_free_space(text, taken, end):
                    end += 1
                taken[start:end] = b"\1" * (end - start)
                starts.append(start)
                ends.append(end)
                ids.append(token.id)
                at = text.find(token.text, end)
        before = 0
        for n in np.argsort(np.frombuffer(starts, np.int64)) if ids else ():
            if before < starts[n]:
                yield text[before : starts[n]]
            yield ids[n]
            before = ends[n]
        if before < len(text):
            yield text[before:]


def _is_free_space(text: str, taken: bytearray, at: int) -> bool:
    return text[at] in _SPACE and not taken[at]
