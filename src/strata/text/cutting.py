r"""Where a long text may be cut so that the ids of its parts, joined, are those of the whole.

Tokenizers take some hundred bytes for each byte that they are given at a time. A place is safe
where every match of the pre-tokenizer's patterns surely ends, with or without the rest:

- None holds a letter and then a line feed, and none that begins at a line feed looks back. So it is
  safe between these, in every family that cuts at words or lines.
- Nor, but where patterns take whole lines or join words, a letter and then a full-width comma or
  full stop, or a space and another letter; in the commonest ones, a letter or digit and then any
  character of ASCII that is none.
- Digits that are taken one by one are safe between any two, those taken by three after each third,
  counted from where they begin.

Letters are here those of scripts that every table of Unicode knows alike, and of which every family
knows that they are letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from strata.records import dataclass

PART = 1 << 11
"""Characters of a part at least, if the text is that long and can be cut there: so few that
encoding one finds room in what a budget leaves to allocators."""

LETTER = (
    "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff\u0391-\u03a1\u03a3-\u03c9\u0410-\u044f"
    "\u0e01-\u0e30\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
)
_FURTHER = "\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0904-\u0939"
_DIGITS = "0123456789"

LONG_NUMBER = 64
"""Digits in a row from which on they are cut: names of special tokens have fewer."""


@dataclass(frozen=True)
class Cuts:
    """What is safe in a family: see the module. ``few_letters``: it knows not all of them.
    ``digits``: 1 or 3 where they are taken so, else 0."""

    lines: bool = True
    words: bool = False
    punctuation: bool = False
    anywhere: bool = False
    few_letters: bool = False
    digits: int = 0

    def parts(self, text: str) -> Iterator[str]:
        """The parts of a text, of about ``PART`` characters where there are safe places."""
        start = 0
        for cut in self._places(text):
            yield text[start:cut]
            start = cut
        yield text[start:]

    def longest(self, text: str) -> int:
        """Bytes of UTF-8 of the longest part."""
        start, most = 0, 0
        for cut in (*self._places(text), len(text)):
            # A character takes at most four.
            if 4 * (cut - start) > most:
                most = max(most, len(text[start:cut].encode("utf-8", "replace")))
            start = cut
        return most

    def inside(self, token: str) -> bool:
        """Whether there may be a safe place inside a text that must not be cut."""
        # Whatever follows it in a text: a space at its end may be one before a letter.
        found = _place(self).search(f"{token}a")
        return (found is not None and found.start() < len(token)) or bool(_LONG_RUN.search(token))

    def _places(self, text: str) -> Iterator[int]:
        start = 0
        place = _place(self)
        while start + PART < len(text):
            at = start + PART
            cut = self._after_digits(text, start, at) if self.digits else 0
            if not cut:
                found = place.search(text, at)
                if found is None:
                    return
                cut = found.start()
            start = cut
            yield start

    def _after_digits(self, text: str, start: int, at: int) -> int:
        """The last safe place in the run of digits that ends at ``at``, or goes on; 0 if none."""
        run = text[start:at]
        before = run.rstrip(_DIGITS)
        length = len(run) - len(before)
        if length < LONG_NUMBER or (before and before[-1].isnumeric()):
            return 0
        return at - length % self.digits


_LONG_RUN = re.compile(f"[0-9]{{{LONG_NUMBER},}}")


@lru_cache
def _place(cuts: Cuts) -> re.Pattern[str]:
    letters = LETTER if cuts.few_letters else LETTER + _FURTHER
    following = ["\n"] if cuts.lines else []
    if cuts.words:
        following.append(f" [{letters}]")
    if cuts.punctuation:
        following.append("[\uff0c\u3002]")
    if cuts.anywhere:
        following.append(r"[\x00-@\[-`{-\x7f]")
    place = f"(?<=[{letters}])(?={'|'.join(following)})" if following else "(?!)"
    if cuts.anywhere:
        place += "|(?<=[0-9])(?=[A-Za-z\n])"
    return re.compile(place)
