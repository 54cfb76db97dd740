"""Byte pair encoding by merge list, on the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from strata.text.pretokenizers import PreTokenizer
from strata.text.special import SpecialTokens

if TYPE_CHECKING:
    import tokenizers


def _byte_letters() -> list[str]:
    """GPT-2's table: the letter that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in letters)
    letters.update((byte, chr(256 + n)) for n, byte in enumerate(rest))
    return [letters[byte] for byte in range(256)]


BYTE_LETTERS = _byte_letters()
_NO_TOKEN = "\0no token\0"
_LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def letters_to_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with any other letter is plain text."""
    try:
        return bytes([_LETTER_BYTES[letter] for letter in token])
    except KeyError:
        return token.encode()


class BpeEncoder:
    """GPT-2's scheme and its descendants, and gemma 4's over plain text with byte fallback.

    The engine is built at the first encode: decoding alone does not need it.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[str],
        family: PreTokenizer,
        special: SpecialTokens,
        escape_spaces: bool,
    ) -> None:
        self._vocabulary = vocabulary
        self._merges = merges
        self._family = family
        self._special = special
        self._escape_spaces = escape_spaces
        self._first_stand_in = 1 + max(vocabulary.values())
        self._stand_ins: list[list[int]] = []

    def encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_text(part)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        if self._escape_spaces:
            text = text.replace(" ", "\u2581")
        if not self._family.newline_runs:
            return self._merge(text)
        ids: list[int] = []
        for line in re.split("(\n+)", text):
            if not line:
                continue
            whole = self._vocabulary.get(line) if line[0] == "\n" else None
            ids += self._merge(line) if whole is None else [whole]
        return ids

    def _merge(self, text: str) -> list[int]:
        ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        if self._stand_ins and max(ids, default=0) >= self._first_stand_in:
            ids = [known for id in ids for known in self._replace_stand_in(id)]
        return ids

    def _replace_stand_in(self, id: int) -> list[int]:
        index = id - self._first_stand_in
        return [id] if index < 0 else self._stand_ins[index]

    @cached_property
    def _engine(self) -> tokenizers.Tokenizer:
        import tokenizers
        from tokenizers import models, pre_tokenizers

        vocabulary = dict(self._vocabulary)
        pairs: dict[tuple[str, str], None] = {}
        for merge in self._merges:
            # A merge may begin with a space in vocabularies that do not escape it.
            cut = merge.find(" ", 1)
            if cut > 0:
                pairs[merge[:cut], merge[cut + 1 :]] = None
        needed = [text for left, right in pairs for text in (left, right, left + right)]
        if self._family.byte_level:
            needed += BYTE_LETTERS
        # Letters and merges without a token still take part in merging.
        for text in needed:
            if text not in vocabulary:
                vocabulary[text] = self._first_stand_in + len(self._stand_ins)
                self._stand_ins.append(self._spell(text))
        # A letter that not even bytes can spell vanishes, but keeps its neighbours apart.
        vocabulary[_NO_TOKEN] = self._first_stand_in + len(self._stand_ins)
        self._stand_ins.append([])

        engine = tokenizers.Tokenizer(
            models.BPE(
                vocab=vocabulary,
                merges=list(pairs),
                unk_token=_NO_TOKEN,
                byte_fallback=not self._family.byte_level,
                ignore_merges=self._family.ignore_merges,
            )
        )
        cuts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
            for pattern in self._family.patterns
        ]
        if self._family.byte_level:
            cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        engine.pre_tokenizer = pre_tokenizers.Sequence(cuts)
        return engine

    def _spell(self, text: str) -> list[int]:
        """Ids for a merge result that is no token: byte by byte, unknown bytes dropped."""
        names = (
            [chr(byte) for byte in text.encode() if byte < 0x80]
            if self._family.byte_level
            else [f"<0x{byte:02X}>" for byte in text.encode()]
        )
        return [self._vocabulary[name] for name in names if name in self._vocabulary]
