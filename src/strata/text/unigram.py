"""Sentencepiece unigram (`tokenizer.ggml.model` = `t5`): the segmentation with the best score sum.

Kudo 2018, "Subword Regularization"; the normaliser's table is sentencepiece's compiled character
map, a double-array trie over UTF-8 (Kanda et al. 2018) with its replacements behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence, Set

from strata.text.errors import TokenizerError
from strata.text.sentencepiece import SPACE
from strata.text.special import SpecialTokens

_UNKNOWN_PENALTY = 10.0
_TOGETHER = 1 << 12
_POSITION_BYTES = 160
"""Bytes that a position takes while the best way through is looked for."""

_COPIES = 3
"""Of a text's bytes and of what they become, while they are worked on."""

_MAX_REPLACEMENT = 256
"""Bytes that one character, or some, become at most: the longest of Unicode's are 33."""


class CharacterMap:
    """Replaces the longest prefix that the table knows, as sentencepiece's normaliser does."""

    def __init__(self, table: bytes) -> None:
        if len(table) < 4:
            raise TokenizerError("tokenizer.ggml.precompiled_charsmap: shorter than its header")
        (size,) = struct.unpack_from("<I", table)
        if size % 4 or 4 + size >= len(table):
            raise TokenizerError(
                f"tokenizer.ggml.precompiled_charsmap: trie of {size} bytes in {len(table)} bytes"
            )
        self._units: tuple[int, ...] = struct.unpack_from(f"<{size // 4}I", table, 4)
        self._replacements = table[4 + size :]

    def longest(self, data: bytes, start: int) -> tuple[int, bytes]:
        """Length of the longest known prefix of `data[start:]` and its replacement, or (0, b"")."""
        found, value = 0, 0
        node = self._base(self._unit(0))
        for position in range(start, len(data)):
            byte = data[position]
            if byte == 0:
                break
            node ^= byte
            unit = self._unit(node)
            if unit & 0x800000FF != byte:
                break
            node ^= self._base(unit)
            if unit >> 8 & 1:
                found = position - start + 1
                value = self._unit(node) & 0x7FFFFFFF
        if not found:
            return 0, b""
        end = self._replacements.find(b"\0", value)
        if value >= len(self._replacements) or end < 0:
            raise TokenizerError("tokenizer.ggml.precompiled_charsmap: replacement out of bounds")
        if end - value > _MAX_REPLACEMENT:
            raise TokenizerError(
                f"tokenizer.ggml.precompiled_charsmap: a replacement of {end - value} bytes; at "
                f"most {_MAX_REPLACEMENT} are put in"
            )
        return found, self._replacements[value:end]

    @staticmethod
    def _base(unit: int) -> int:
        return ((unit >> 10) << ((unit & 0x200) >> 6)) & 0xFFFFFFFF

    def _unit(self, index: int) -> int:
        if index >= len(self._units):
            raise TokenizerError("tokenizer.ggml.precompiled_charsmap: trie index out of bounds")
        return self._units[index]


class UnigramEncoder:
    """Viterbi over all tokens that match; runs of characters without one are one unknown token."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        scores: Sequence[float],
        user_defined: Set[int],
        special: SpecialTokens,
        character_map: CharacterMap | None,
        add_space_prefix: bool,
        merge_spaces: bool,
        unknown_id: int,
    ) -> None:
        """`vocabulary` holds the tokens that may be chosen: normal, user-defined and unused."""
        self._scores = {
            text.encode(): (0.0 if id in user_defined else scores[id], id)
            for text, id in vocabulary.items()
        }
        self._longest = max(map(len, self._scores), default=0)
        normal = [scores[id] for id in vocabulary.values() if id not in user_defined]
        self._unknown_score = min(normal, default=0.0) - _UNKNOWN_PENALTY
        self._user_texts = [t.encode() for t, id in vocabulary.items() if id in user_defined]
        self._spaces_begin = not any(SPACE in text.lstrip(SPACE) for text in vocabulary)
        self._special = special
        self._character_map = character_map
        self._add_space_prefix = add_space_prefix
        self._merge_spaces = merge_spaces
        self._unknown_id = unknown_id

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
            else:
                yield from self._segment(self._normalise(part))

    def working_bytes(self, text: str) -> int:
        # Of what the text becomes, for that may be longer: the longest stretch that tokens may
        # reach across, beside what is decided together, and the bytes themselves.
        data, space = text.encode(), SPACE.encode()
        whole = longest = stretch = 0
        last = b""
        for piece in self._normalised(data):
            if self._spaces_begin and piece.startswith(space) and not last.endswith(space):
                stretch = 0
            stretch += len(piece)
            whole += len(piece)
            longest, last = max(longest, stretch), piece
        together = min(whole, longest + _TOGETHER)
        return _POSITION_BYTES * together + _COPIES * (len(data) + whole)

    def _normalise(self, text: str) -> bytes:
        out = bytearray()
        for piece in self._normalised(text.encode()):
            out += piece
        return bytes(out)

    def _normalised(self, data: bytes) -> Iterator[bytes]:
        """What a text becomes, a character or so at a time."""
        space = SPACE.encode()
        position, in_word, prefixed = 0, False, False
        while position < len(data):
            length, piece = self._replace(data, position)
            position += length
            out = bytearray()
            for byte in piece:
                if byte != 0x20:
                    if not in_word:
                        in_word = True
                        if (self._add_space_prefix and not prefixed) or self._merge_spaces:
                            out += space
                            prefixed = True
                    out.append(byte)
                else:
                    in_word = False
                    if not self._merge_spaces:
                        out += space
            yield bytes(out)

    def _replace(self, data: bytes, start: int) -> tuple[int, bytes]:
        matches = [t for t in self._user_texts if data.startswith(t, start)]
        if matches:
            longest = max(matches, key=len)
            return len(longest), longest
        if self._character_map is not None:
            length, piece = self._character_map.longest(data, start)
            if length:
                return length, piece
        length = _utf8_length(data[start])
        return length, data[start : start + length]

    def _segment(self, data: bytes) -> Iterator[list[int]]:
        end = len(data)
        worst = float("-inf")
        # Of the positions from `first` on: the best score, and the token and place it comes from.
        best: list[tuple[float, int, int]] = [(0.0, self._unknown_id, 0)]
        first = start = reach = 0
        unknown_before = False
        while start < end:
            score = best[start - first][0]
            if reach == start and start - first >= _TOGETHER:
                # No token reaches across: what comes before is decided.
                ids = self._trace(best, first, unknown_before)
                yield ids
                if ids:
                    unknown_before = ids[-1] == self._unknown_id
                first, best = start, [(score, self._unknown_id, start)]
            width = min(_utf8_length(data[start]), end - start)
            single = False
            for stop in range(start + 1, min(end, start + self._longest) + 1):
                token = self._scores.get(data[start:stop])
                if token is None:
                    continue
                single = single or stop - start == width
                self._offer(best, stop - first, (score + token[0], token[1], start))
                reach = max(reach, stop)
            if not single:
                unknown = (score + self._unknown_score, self._unknown_id, start)
                self._offer(best, start + width - first, unknown)
                reach = max(reach, start + width)
            best += [(worst, self._unknown_id, start)] * (start + width - first + 1 - len(best))
            start += width
        yield self._trace(best[: end - first + 1], first, unknown_before)

    def _offer(
        self, best: list[tuple[float, int, int]], at: int, way: tuple[float, int, int]
    ) -> None:
        nowhere = (float("-inf"), self._unknown_id, 0)
        best += [nowhere] * (at + 1 - len(best))
        if way[0] > best[at][0]:
            best[at] = way

    def _trace(
        self, best: list[tuple[float, int, int]], first: int, unknown_before: bool
    ) -> list[int]:
        """The tokens of the best way through, runs of unknown ones as one."""
        ids: list[int] = []
        end = first + len(best) - 1
        while end > first:
            _, id, start = best[end - first]
            if id != self._unknown_id or not ids or ids[-1] != id:
                ids.append(id)
            end = start
        if unknown_before and ids and ids[-1] == self._unknown_id:
            ids.pop()
        return ids[::-1]


def _utf8_length(first: int) -> int:
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
