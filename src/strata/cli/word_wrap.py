"""Words that stay whole on a terminal, although they come in pieces."""

from __future__ import annotations

import unicodedata

_FENCE = "```"


class WordWrap:
    """Puts newlines where a terminal of ``width`` columns would break a word.

    A word that turns out too long for its line is wiped away there and begun again on the next.
    Lines of code, between fences, and words as long as a line are left to the terminal.
    """

    def __init__(self, width: int) -> None:
        # The last column stays empty: behind it terminals differ in where the cursor is.
        self._width = max(1, width - 1)
        self._line = self._word = ""
        self._column = 0
        self._fenced = False

    def feed(self, text: str) -> str:
        """What is to be written for the next piece of the text."""
        return "".join(map(self._put, text))

    def _put(self, char: str) -> str:
        if char == "\n":
            self._fenced ^= self._line.lstrip().startswith(_FENCE)
            self._line = ""
            return self._break(char)
        self._line += char
        if char == "\t":
            self._word = ""
            self._column = (self._column // 8 + 1) * 8
            return char
        cells = _cells(char)
        full = self._column + cells > self._width and not self._fenced
        before = self._wrap(char) if full else ""
        if char == " ":
            if before:
                return before
            self._word = ""
        else:
            self._word += char
        self._column += cells
        return before + char

    def _wrap(self, char: str) -> str:
        word, cells = self._word, sum(map(_cells, self._word))
        if char == " " or cells >= self._column:
            return self._break("\n")
        moved = self._break("\n") + word
        self._word, self._column = word, cells
        return (f"\x1b[{cells}D\x1b[K" if cells else "") + moved

    def _break(self, newline: str) -> str:
        self._word, self._column = "", 0
        return newline


def _cells(char: str) -> int:
    """Columns that a character takes, by the Unicode database."""
    if char.isascii():
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
