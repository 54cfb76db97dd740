"""Vocabularies that are byte pair encoding but for a part of the text.

`whitespace` (Jina's Chinese embeddings) drops white space, `hybriddna` reads what is between
`<dna>` and `</dna>` in sixes of bases. Facts: llama.cpp's vocabulary loader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from strata.text.bpe import BpeEncoder
from strata.text.special import SpecialTokens
from strata.text.wordpiece import WHITE_SPACE, lowered

DNA_MARK = "\ue000"
"""Behind each six of bases in a file, so that they are no words."""

_BASES = 6
_TOGETHER = _BASES << 10
_DNA = re.compile(r"<dna>(.*?)(</dna>|\Z)", re.DOTALL)
_NOT_SPACE = re.compile(f"[^{re.escape(''.join(sorted(WHITE_SPACE)))}]+")


class WithoutSpace:
    """White space divides a text and is dropped."""

    def __init__(self, words: BpeEncoder, special: SpecialTokens, lowercase: bool) -> None:
        """``words`` knows no special tokens."""
        self._words = words
        self._special = special
        self._lowercase = lowercase

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
                continue
            for match in _NOT_SPACE.finditer(part):
                word = "".join(map(lowered, match[0])) if self._lowercase else match[0]
                yield from self._words.encode_parts(word, False)

    def working_bytes(self, text: str) -> int:
        return self._words.working_bytes(text)


class WithDna:
    """Bases between their marks are tokens of six, padded with ``A``; the rest is text."""

    def __init__(self, words: BpeEncoder, special: SpecialTokens, ids: Mapping[str, int]) -> None:
        """``words`` knows no special tokens; ``ids`` are those of all tokens."""
        self._words = words
        self._special = special
        self._ids = {text: id for text, id in ids.items() if text.endswith(DNA_MARK)}
        self._begin, self._end, self._other = ids["<dna>"], ids["</dna>"], ids["<oov>"]

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
                continue
            at = 0
            for match in _DNA.finditer(part):
                yield from self._text(part[at : match.start()])
                yield (self._begin,)
                yield from self._sixes(match[1])
                if match[2]:
                    yield (self._end,)
                at = match.end()
            yield from self._text(part[at:])

    def working_bytes(self, text: str) -> int:
        return self._words.working_bytes(text)

    def _text(self, text: str) -> Iterator[Sequence[int]]:
        return self._words.encode_parts(text, False) if text else iter(())

    def _sixes(self, bases: str) -> Iterator[list[int]]:
        # Bytes are counted: a character that is no base is as many as it has.
        data = bases.encode().decode("latin-1")
        for start in range(0, len(data), _TOGETHER):
            some = data[start : start + _TOGETHER]
            yield [self._id(some[at : at + _BASES]) for at in range(0, len(some), _BASES)]

    def _id(self, six: str) -> int:
        if not six.isascii():
            return self._other
        return self._ids.get(six.upper().ljust(_BASES, "A") + DNA_MARK, self._other)
