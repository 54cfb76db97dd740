"""PLaMo 2's vocabulary (`tokenizer.ggml.model` = `plamo2`): the segmentation with the best score.

A unigram model over characters with scores in units of 1e-4, worked out from the end of the text;
characters without a token are bytes. Source: https://huggingface.co/pfnet/plamo-2-1b (tokenizer).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence

from strata.text.errors import TokenizerError
from strata.text.prefixes import Prefixes
from strata.text.special import SpecialTokens

_UNIT = 1e4
_UNKNOWN = -10_000_000
_INVALID = -20_000_000
_BYTE_ORDER_MARK = "\ufeff"
_CHARACTER_BYTES = 24
"""Bytes that a character takes while the best way through is looked for: cost, length and id."""


class Plamo2Encoder:
    """See the module. ``byte_ids`` are the tokens of the 256 bytes."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        scores: Sequence[float],
        byte_ids: Mapping[int, int],
        special: SpecialTokens,
    ) -> None:
        missing = next((byte for byte in range(256) if byte not in byte_ids), None)
        if missing is not None:
            raise TokenizerError(f"the vocabulary has no token <0x{missing:02X}>")
        self._byte_ids = byte_ids
        self._scores = {
            text: (score, id)
            for text, id in vocabulary.items()
            if (score := _fixed_point(scores[id])) > _INVALID
        }
        self._prefixes = Prefixes(self._scores)
        self._special = special

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        for part in self._special.partition(text, parse_special):
            if isinstance(part, int):
                yield (part,)
            else:
                yield from self._segment(part.removeprefix(_BYTE_ORDER_MARK))

    def working_bytes(self, text: str) -> int:
        return _CHARACTER_BYTES * len(text)

    def _segment(self, text: str) -> Iterator[Sequence[int]]:
        end = len(text)
        costs = array("q", bytes(8 * (end + 1)))
        lengths, ids = array("i", bytes(4 * end)), array("i", bytes(4 * end))
        for at in range(end - 1, -1, -1):
            # What comes first stays where two ways cost the same: the longest, and bytes last.
            best, length, token = 1 << 60, 1, -1
            for taken in self._prefixes.lengths(text, at):
                found = self._scores.get(text[at : at + taken])
                if found is None or at + taken > end:
                    continue
                cost = costs[at + taken] - found[0]
                if cost < best:
                    best, length, token = cost, taken, found[1]
            if costs[at + 1] - _UNKNOWN < best:
                best, length, token = costs[at + 1] - _UNKNOWN, 1, -1
            costs[at], lengths[at], ids[at] = best, length, token
        at = 0
        while at < end:
            if ids[at] >= 0:
                yield (ids[at],)
            else:
                yield [self._byte_ids[byte] for byte in text[at].encode()]
            at += lengths[at]


def _fixed_point(score: float) -> int:
    """Rounded half away from zero; what is no number is not to be chosen."""
    if not math.isfinite(score):
        return _INVALID
    scaled = score * _UNIT
    return int(math.copysign(math.floor(abs(scaled) + 0.5), scaled))
