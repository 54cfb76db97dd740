"""Sentencepiece BPE (`tokenizer.ggml.model` = `llama`): merges by score, bytes as a last resort."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from heapq import heapify, heappop, heappush

from strata.text.errors import TokenizerError
from strata.text.special import SpecialTokens

SPACE = "\u2581"
_CACHED_WORDS = 1 << 14
_CACHED_LENGTH = 24
"""Words of so many characters at most are kept: others hardly come again, and take more memory."""

_CHARACTER_BYTES = 500
"""Bytes that a character of a word takes while it is merged."""


class SentencePieceEncoder:
    """Starts from single characters; the neighbours that make the best-scored token are merged,
    the leftmost of equals first, until no neighbours make a token. (Kudo and Richardson 2018, and
    the original llama.cpp port of it, whose order of ties counts.)
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        scores: Sequence[float],
        special: SpecialTokens,
        add_space_prefix: bool,
        unknown_id: int | None,
    ) -> None:
        self._vocabulary = vocabulary
        self._scores = scores
        self._special = special
        self._add_space_prefix = add_space_prefix
        self._unknown_id = unknown_id
        self._word_ids = lru_cache(_CACHED_WORDS)(self._merge_word)

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        after_special = True
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
                after_special = True
                continue
            if self._add_space_prefix and after_special:
                part = " " + part
            after_special = False
            for match in self._words.finditer(part.replace(" ", SPACE)):
                word = match[0]
                short = len(word) <= _CACHED_LENGTH
                yield self._word_ids(word) if short else self._merge_word(word)

    def working_bytes(self, text: str) -> int:
        words = self._words.finditer(text.replace(" ", SPACE))
        return _CHARACTER_BYTES * max((m.end() - m.start() for m in words), default=0)

    @cached_property
    def _words(self) -> re.Pattern[str]:
        """Cuts text where no token reaches across, so that words can be merged on their own.

        That is before a space unless it follows a space or a character that some token joins to a
        following space.
        """
        joined = set(re.findall(f"(.){SPACE}", "\n".join(self._vocabulary), re.DOTALL))
        joined |= {SPACE, "\n"} if any(f"\n{SPACE}" in t for t in self._vocabulary) else {SPACE}
        joiners = re.escape("".join(sorted(joined)))
        return re.compile(f".(?:[^{SPACE}]|(?<=[{joiners}]){SPACE})*", re.DOTALL)

    def _merge_word(self, word: str) -> tuple[int, ...]:
        vocabulary, scores = self._vocabulary, self._scores
        symbols = list(word)
        before = list(range(-1, len(symbols) - 1))
        after = list(range(1, len(symbols) + 1))
        end = len(symbols)
        queue: list[tuple[float, int, int, int]] = []  # -score, left, right, characters
        for left in range(end - 1):
            id = vocabulary.get(symbols[left] + symbols[left + 1])
            if id is not None:
                queue.append((-scores[id], left, left + 1, 2))
        heapify(queue)
        while queue:
            _, left, right, size = heappop(queue)
            if not symbols[left] or not symbols[right]:
                continue
            merged = symbols[left] + symbols[right]
            if len(merged) != size:  # one of the two has grown since
                continue
            symbols[left], symbols[right] = merged, ""
            following = after[right]
            after[left] = following
            if following < end:
                before[following] = left
            for a, b in ((before[left], left), (left, following)):
                if a >= 0 and b < end:
                    pair = symbols[a] + symbols[b]
                    id = vocabulary.get(pair)
                    if id is not None:
                        heappush(queue, (-scores[id], a, b, len(pair)))
        return tuple(id for symbol in symbols if symbol for id in self._symbol_ids(symbol))

    def _symbol_ids(self, symbol: str) -> list[int]:
        id = self._vocabulary.get(symbol)
        return [id] if id is not None else [self._byte_id(byte) for byte in symbol.encode()]

    def _byte_id(self, byte: int) -> int:
        id = self._vocabulary.get(f"<0x{byte:02X}>", self._unknown_id)
        if id is None:
            raise TokenizerError(
                f"the vocabulary has no token for byte 0x{byte:02X} and no unknown token"
            )
        return id
