"""Byte pair encoding by merge list, on the `tokenizers` library."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, overload

import numpy as np

import strata._native as _native
from strata.text.engine_ids import ids_of
from strata.text.pipeline import LIBRARY_BYTE, failures_named
from strata.text.pretokenizers import PreTokenizer
from strata.text.signals import held_back
from strata.text.special import SpecialTokens

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import models


def _byte_letters() -> list[str]:
    """GPT-2's table: the letter that stands for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in letters)
    letters.update((byte, chr(256 + n)) for n, byte in enumerate(rest))
    return [letters[byte] for byte in range(256)]


BYTE_LETTERS = _byte_letters()
_LINE_OR_RUN = re.compile("\n+|[^\n]+")
_NO_TOKEN = "\0no token\0"
# Merges that are cut in two at a time.
_TOGETHER = 1024
_LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def letters_to_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; a token with any other letter is plain text."""
    try:
        return bytes([_LETTER_BYTES[letter] for letter in token])
    except KeyError:
        return token.encode()


class _Merges(Sequence[tuple[str, str]]):
    """Merges as pairs, made one at a time: a list of them takes more memory than all the rest."""

    def __init__(self, merges: Sequence[str]) -> None:
        hashes = np.fromiter(map(hash, merges), np.int64, len(merges))
        hashes.sort()
        if (hashes[1:] == hashes[:-1]).any():
            # The first of equal merges counts.
            merges = list(dict.fromkeys(merges))
        self._merges = merges
        self._count = sum(map(len, self._runs()))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return chain.from_iterable(self._runs())

    def _runs(self) -> Iterator[list[tuple[str, str]]]:
        """Some at a time: one by one each costs several times as much. A merge may begin with a
        space in vocabularies that do not escape it."""
        merges = iter(self._merges)
        while texts := list(islice(merges, _TOGETHER)):
            yield _native.split_pairs(texts)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, str]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, str] | list[tuple[str, str]]:
        return list(self)[index]


class BpeEncoder:
    """GPT-2's scheme and its descendants, and gemma 4's over plain text with byte fallback.

    The engine is built at the first encode: decoding alone does not need it. From then on it holds
    the vocabulary, and what it was built from is let go.
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
        self._cuts = family.cuts
        self._special = special
        self._escape_spaces = escape_spaces
        self._first_stand_in = 1 + max(vocabulary.values())
        self._stand_ins: list[list[int]] = []
        self._building = threading.Lock()

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
            else:
                for piece in self._cuts.parts(part):
                    yield from self._encode_text(piece)

    def working_bytes(self, text: str) -> int:
        return LIBRARY_BYTE * self._cuts.longest(text)

    def _encode_text(self, text: str) -> Iterator[Sequence[int]]:
        if self._escape_spaces:
            text = text.replace(" ", "\u2581")
        if not self._family.newline_runs:
            yield self._merge(text)
            return
        for match in _LINE_OR_RUN.finditer(text):
            line = match[0]
            whole = self._engine.token_to_id(line) if line[0] == "\n" else None
            known = whole is not None and whole < self._first_stand_in
            yield (whole,) if known and whole is not None else self._merge(line)

    def _merge(self, text: str) -> list[int]:
        engine = self._engine
        with failures_named("the vocabulary"):
            ids = ids_of(engine, text)
        if self._stand_ins and max(ids, default=0) >= self._first_stand_in:
            ids = [known for id in ids for known in self._replace_stand_in(id)]
        return ids

    def _replace_stand_in(self, id: int) -> list[int]:
        index = id - self._first_stand_in
        return [id] if index < 0 else self._stand_ins[index]

    @cached_property
    def _engine(self) -> tokenizers.Tokenizer:
        with self._building:
            built: tokenizers.Tokenizer | None = self.__dict__.get("_engine")
            if built is None:
                with held_back(), failures_named("the vocabulary", foreign=True):
                    built = self._build()
                self._vocabulary, self._merges = {}, ()
                # Set before the lock is let go: whoever waits for it finds nothing to build from.
                self.__dict__["_engine"] = built
            return built

    def _build(self) -> tokenizers.Tokenizer:
        import tokenizers
        from tokenizers import pre_tokenizers

        engine = tokenizers.Tokenizer(self._model())
        cuts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
            for pattern in self._family.patterns
        ]
        if self._family.byte_level:
            cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        engine.pre_tokenizer = pre_tokenizers.Sequence(cuts)
        return engine

    def _model(self) -> models.BPE:
        merges = _Merges(self._merges)
        try:
            return self._model_of(merges, ())
        except MemoryError:
            raise
        except Exception:  # the library raises nothing more precise for a piece without a token
            pass
        # Letters and merges without a token still take part in merging. Usual vocabularies have
        # none, and looking for them takes as long as a third of building.
        return self._model_of(merges, self._missing(merges))

    def _model_of(self, merges: _Merges, missing: Iterable[str]) -> models.BPE:
        """With a stand-in for each text that has no token and may be needed."""
        from tokenizers import models

        vocabulary = dict(self._vocabulary)
        self._stand_ins = []
        for text in chain(missing, BYTE_LETTERS if self._family.byte_level else ()):
            if text not in vocabulary:
                vocabulary[text] = self._first_stand_in + len(self._stand_ins)
                self._stand_ins.append(self._spell(text))
        # A letter that not even bytes can spell vanishes, but keeps its neighbours apart.
        vocabulary[_NO_TOKEN] = self._first_stand_in + len(self._stand_ins)
        self._stand_ins.append([])
        return models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=_NO_TOKEN,
            byte_fallback=not self._family.byte_level,
            ignore_merges=self._family.ignore_merges,
        )

    def _missing(self, merges: _Merges) -> Iterator[str]:
        vocabulary = self._vocabulary
        for left, right in merges:
            whole = left + right
            # Nearly always: all the work for a merge of a usual vocabulary is here.
            if whole not in vocabulary or left not in vocabulary or right not in vocabulary:
                yield from (left, right, whole)

    def _spell(self, text: str) -> list[int]:
        """Ids for a merge result that is no token: byte by byte, unknown bytes dropped."""
        names = (
            [chr(byte) for byte in text.encode() if byte < 0x80]
            if self._family.byte_level
            else [f"<0x{byte:02X}>" for byte in text.encode()]
        )
        return [self._vocabulary[name] for name in names if name in self._vocabulary]
