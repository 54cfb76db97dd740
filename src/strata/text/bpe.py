"""Byte pair encoding by merge list, on the `tokenizers` library."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, overload

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
# A longer text has more of a vocabulary in it, and what has is looked for character by character.
_SHORT = 400
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


class _Engine(NamedTuple):
    """The library's, and the ids for which each text stands that is no token."""

    library: tokenizers.Tokenizer
    stand_ins: list[list[int]]


class BpeEncoder:
    """GPT-2's scheme and its descendants, and gemma 4's over plain text with byte fallback.

    The engine is built at the first encode: decoding alone does not need it. From then on it holds
    the vocabulary, and what it was built from is let go. One that is built for a single text knows
    what may occur in it alone.
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
        self._expects_one = False
        self._building = threading.Lock()

    def expect_one_text(self) -> None:
        """The next text is mostly the only one: if it is short, an engine for it alone is built,
        in a quarter of the time."""
        self._expects_one = True

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        engine = self._engine_for(text)
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
            else:
                for piece in self._cuts.parts(part):
                    yield from self._encode_text(piece, engine or self._engine)

    def working_bytes(self, text: str) -> int:
        return LIBRARY_BYTE * self._cuts.longest(text)

    def _encode_text(self, text: str, engine: _Engine) -> Iterator[Sequence[int]]:
        text = self._escaped(text)
        if not self._family.newline_runs:
            yield self._merge(text, engine)
            return
        for match in _LINE_OR_RUN.finditer(text):
            line = match[0]
            whole = engine.library.token_to_id(line) if line[0] == "\n" else None
            known = whole is not None and whole < self._first_stand_in
            yield (whole,) if known and whole is not None else self._merge(line, engine)

    def _escaped(self, text: str) -> str:
        return text.replace(" ", "\u2581") if self._escape_spaces else text

    def _merge(self, text: str, engine: _Engine) -> list[int]:
        with failures_named("the vocabulary"):
            ids = ids_of(engine.library, text)
        if engine.stand_ins and max(ids, default=0) >= self._first_stand_in:
            first = self._first_stand_in
            return [
                known
                for id in ids
                for known in ([id] if id < first else engine.stand_ins[id - first])
            ]
        return ids

    def _engine_for(self, text: str) -> _Engine | None:
        """One that knows what may occur in ``text`` alone, where that is worth it."""
        with self._building:
            if not self._expects_one or "_engine" in self.__dict__:
                return None
            self._expects_one = False
            if len(text) > _SHORT or 0 < len(self._byte_tokens()) < 256:
                # With some bytes alone, how a letter is spelt depends on merges of other texts.
                return None
            letters = self._escaped(text)
            if self._family.byte_level:
                letters = "".join(BYTE_LETTERS[byte] for byte in letters.encode())
            with held_back(), failures_named("the vocabulary", foreign=True):
                return self._build(self._within(letters), _merges_within(self._merges, letters))

    def _within(self, letters: str) -> dict[str, int]:
        """The tokens that occur in a text, and those that stand for bytes."""
        known = self._vocabulary
        return self._byte_tokens() | {t: id for t, id in known.items() if t in letters}

    def _byte_tokens(self) -> dict[str, int]:
        """The tokens that stand for bytes, where letters do not."""
        known, names = self._vocabulary, map(_byte_name, range(256))
        return {} if self._family.byte_level else {n: known[n] for n in names if n in known}

    @cached_property
    def _engine(self) -> _Engine:
        with self._building:
            built: _Engine | None = self.__dict__.get("_engine")
            if built is None:
                with held_back(), failures_named("the vocabulary", foreign=True):
                    built = self._build(self._vocabulary, self._merges)
                self._vocabulary, self._merges = {}, ()
                # Set before the lock is let go: whoever waits for it finds nothing to build from.
                self.__dict__["_engine"] = built
            return built

    def _build(self, vocabulary: Mapping[str, int], merges: Sequence[str]) -> _Engine:
        import tokenizers
        from tokenizers import pre_tokenizers

        model, stand_ins = self._model(vocabulary, _Merges(merges))
        library = tokenizers.Tokenizer(model)
        cuts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
            for pattern in self._family.patterns
        ]
        if self._family.byte_level:
            cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
        return _Engine(library, stand_ins)

    def _model(
        self, vocabulary: Mapping[str, int], merges: _Merges
    ) -> tuple[models.BPE, list[list[int]]]:
        try:
            return self._model_of(vocabulary, merges, ())
        except MemoryError:
            raise
        except Exception:  # the library raises nothing more precise for a piece without a token
            pass
        # Letters and merges without a token still take part in merging. Usual vocabularies have
        # none, and looking for them takes as long as a third of building.
        return self._model_of(vocabulary, merges, _missing(vocabulary, merges))

    def _model_of(
        self, vocabulary: Mapping[str, int], merges: _Merges, missing: Iterable[str]
    ) -> tuple[models.BPE, list[list[int]]]:
        """With a stand-in for each text that has no token and may be needed."""
        from tokenizers import models

        vocabulary = dict(vocabulary)
        stand_ins: list[list[int]] = []
        for text in chain(missing, BYTE_LETTERS if self._family.byte_level else ()):
            if text not in vocabulary:
                vocabulary[text] = self._first_stand_in + len(stand_ins)
                stand_ins.append(self._spell(text))
        # A letter that not even bytes can spell vanishes, but keeps its neighbours apart.
        vocabulary[_NO_TOKEN] = self._first_stand_in + len(stand_ins)
        stand_ins.append([])
        model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=_NO_TOKEN,
            byte_fallback=not self._family.byte_level,
            ignore_merges=self._family.ignore_merges,
        )
        return model, stand_ins

    def _spell(self, text: str) -> list[int]:
        """Ids for a merge result that is no token: byte by byte, unknown bytes dropped."""
        names = (
            [chr(byte) for byte in text.encode() if byte < 0x80]
            if self._family.byte_level
            else [_byte_name(byte) for byte in text.encode()]
        )
        return [self._vocabulary[name] for name in names if name in self._vocabulary]


def _byte_name(byte: int) -> str:
    return f"<0x{byte:02X}>"


def _missing(vocabulary: Mapping[str, int], merges: _Merges) -> Iterator[str]:
    for left, right in merges:
        whole = left + right
        # Nearly always: all the work for a merge of a usual vocabulary is here.
        if whole not in vocabulary or left not in vocabulary or right not in vocabulary:
            yield from (left, right, whole)


def _merges_within(merges: Sequence[str], letters: str) -> list[str]:
    """Those that may take place in a text, in their order."""
    # Where spaces are letters it is not known yet which one is between the two.
    unspaced = letters.replace(" ", "")
    return [merge for merge in merges if merge.replace(" ", "") in unspaced]
