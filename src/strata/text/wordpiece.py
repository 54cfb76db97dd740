"""WordPiece (`tokenizer.ggml.model` = `bert`): words cut into the longest tokens from the left.

Devlin et al. 2018, and what llama.cpp does of it: a word without a way through is one unknown
token, punctuation and Han characters are words of their own, accents go with the capitals. In a
file the beginning of a word is marked (U+2581), not its continuation.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from strata.text.errors import TokenizerError
from strata.text.prefixes import Prefixes
from strata.text.sentencepiece import SPACE
from strata.text.special import SpecialTokens

# What Unicode calls white space.
WHITE_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_HAN = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),  # sic: the library that vocabularies were made with begins here
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_KNOWN_CHARACTERS = 1 << 12
_CHARACTER_BYTES = 100
"""Bytes that a character of a word takes, as text and as an id, while its tokens are looked for."""
_SPACE_BETWEEN = " "


@lru_cache(_KNOWN_CHARACTERS)
def _normal(character: str, lowercase: bool, strip_accents: bool) -> str:
    """What stands for a character: nothing, a letter, a space, or a word of its own (between
    spaces)."""
    if strip_accents:
        character = unicodedata.normalize("NFD", character)[0]
    if character in WHITE_SPACE:
        return _SPACE_BETWEEN
    kind = unicodedata.category(character)
    if character in "\0\ufffd" or (kind[0] == "C" and kind != "Cn"):
        return ""
    if strip_accents and kind[0] == "M":
        return ""
    alone = kind[0] == "P" or (character < "\x7f" and kind[0] == "S") or _is_han(character)
    if lowercase:
        character = lowered(character)
    return f" {character} " if alone else character


def _is_han(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _HAN)


def lowered(character: str) -> str:
    """The small letter, one for one."""
    return character.lower()[0]


class WordPieceEncoder:
    """See the module."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        special: SpecialTokens,
        unknown_id: int | None,
        lowercase: bool,
        strip_accents: bool,
    ) -> None:
        if unknown_id is None:
            raise TokenizerError("a WordPiece vocabulary needs tokenizer.ggml.unknown_token_id")
        self._vocabulary = vocabulary
        self._prefixes = Prefixes(vocabulary)
        self._special = special
        self._unknown_id = unknown_id
        self._lowercase = lowercase
        self._strip_accents = strip_accents

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
            else:
                for word in self._words(part):
                    yield self._tokens(SPACE + word)

    def working_bytes(self, text: str) -> int:
        longest = start = 0
        for at, character in enumerate(text):
            if character in WHITE_SPACE:
                longest, start = max(longest, at - start), at
        return _CHARACTER_BYTES * max(longest, len(text) - start)

    def _words(self, text: str) -> Iterator[str]:
        held: list[str] = []
        for character in text:
            normal = _normal(character, self._lowercase, self._strip_accents)
            if not normal.startswith(_SPACE_BETWEEN):
                held.append(normal)
                continue
            if word := "".join(held):
                yield word
            held = []
            if len(normal) > 1:
                yield normal[1:-1]
        if word := "".join(held):
            yield word

    def _tokens(self, word: str) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(word):
            for length in self._prefixes.lengths(word, at):
                id = self._vocabulary.get(word[at : at + length])
                if id is not None and at + length <= len(word):
                    break
            else:
                return [self._unknown_id]
            ids.append(id)
            at += length
        return ids
