"""RWKV's world vocabulary (`tokenizer.ggml.model` = `rwkv`): always the longest token that fits.

Tokens are bytes; files write them with escapes, as Python writes bytes.
Source: https://github.com/BlinkDL/ChatRWKV (tokenizer), and what llama.cpp reads of its escapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from strata.text.errors import TokenizerError
from strata.text.prefixes import Prefixes
from strata.text.special import SpecialTokens

_TOGETHER = 1 << 10
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_LETTERS = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def unescaped(text: str) -> bytes:
    """The bytes that a token of the file stands for."""

    def byte(match: re.Match[bytes]) -> bytes:
        code, letter = match[1], match[2]
        return bytes([int(code, 16)]) if code else _LETTERS.get(letter, letter)

    return _ESCAPE.sub(byte, text.encode())


class RwkvEncoder:
    """See the module. A byte that no token begins with is the unknown token."""

    def __init__(
        self, vocabulary: Mapping[bytes, int], special: SpecialTokens, unknown_id: int | None
    ) -> None:
        self._vocabulary = vocabulary
        self._prefixes = Prefixes(vocabulary)
        self._special = special
        self._unknown_id = unknown_id

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
            else:
                yield from self._longest_tokens(part.encode())

    def working_bytes(self, text: str) -> int:
        # Its bytes.
        return 4 * len(text)

    def _longest_tokens(self, data: bytes) -> Iterator[list[int]]:
        ids: list[int] = []
        at = 0
        while at < len(data):
            for length in self._prefixes.lengths(data, at):
                id = self._vocabulary.get(data[at : at + length])
                # At the end of the text a slice is shorter than what was asked for.
                if id is not None and at + length <= len(data):
                    break
            else:
                id, length = self._unknown(data[at]), 1
            ids.append(id)
            at += length
            if len(ids) == _TOGETHER:
                yield ids
                ids = []
        yield ids

    def _unknown(self, byte: int) -> int:
        if self._unknown_id is None:
            raise TokenizerError(
                f"the vocabulary has no token for byte 0x{byte:02X} and no unknown token"
            )
        return self._unknown_id
