"""Detokenisation one token at a time, exact to the byte."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turns token ids into text as they arrive; never emits half a character.

    The strings returned by `push` and `finish`, joined, equal `Tokenizer.decode` of all ids: bytes
    that can still become a character are held back, bytes that cannot are U+FFFD, as
    `bytes.decode("utf-8", "replace")` has it for the whole.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], strip_leading_space: bool) -> None:
        self._token_bytes = token_bytes
        self._strip = strip_leading_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Add one token and return the text that became certain with it (possibly empty)."""
        piece = self._token_bytes(id)
        if not piece:
            return ""
        if self._strip:
            self._strip = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)
