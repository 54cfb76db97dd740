"""What a tokenizer takes, from how many tokens and merges it has.

The library keeps a vocabulary in two hash tables and its merges in a third, whose buckets double
when seven eighths are in use, and each token as two strings; SentencePiece's is a dictionary of
Python. The constants were measured with vocabularies of 32,000 to 262,144 tokens.
"""

from __future__ import annotations

from typing import Literal

from strata.machine.constants import MB
from strata.records import dataclass

Kind = Literal["bpe", "sentencepiece", "json", "json pairs"]


@dataclass(frozen=True)
class TokenizerOutline:
    """Sizes of a tokenizer: ``bpe`` and ``sentencepiece`` come from a GGUF file's metadata,
    ``json`` from a tokenizer.json, ``json pairs`` from one whose merges are lists of two. ``kept``
    are the bytes of one that is there already, with what its file keeps of it."""

    kind: Kind
    tokens: int
    merges: int
    kept: int | None = None


@dataclass(frozen=True)
class _Costs:
    """Bytes kept: on its own, for a token and for a merge; and those of building besides, where
    lists of merges grow by doubling."""

    alone: int
    token: int
    merge: int
    building: int
    building_token: int
    building_merge: int
    building_list: int = 0


_TOKEN_BUCKET = 2 * 33
_MERGE_BUCKET = 17
_COSTS: dict[Kind, _Costs] = {
    "bpe": _Costs(5 * MB, 120, 4, 0, 130, 145),
    "sentencepiece": _Costs(MB // 2, 210, 0, MB, 31, 0),
    "json": _Costs(5 * MB // 2, 146, 5, 7 * MB, 215, 120),
    "json pairs": _Costs(3 * MB, 192, 5, 0, 230, 325, 48),
}


def tokenizer_bytes(tokenizer: TokenizerOutline) -> int:
    """Bytes of a tokenizer that has been built: as measured, else as thought."""
    return _thought_bytes(tokenizer) if tokenizer.kept is None else tokenizer.kept


def _thought_bytes(tokenizer: TokenizerOutline) -> int:
    cost = _COSTS[tokenizer.kind]
    kept = cost.alone + tokenizer.tokens * cost.token + tokenizer.merges * cost.merge
    if tokenizer.kind == "sentencepiece":
        return kept
    tables = _TOKEN_BUCKET * _buckets(tokenizer.tokens) + _MERGE_BUCKET * _buckets(tokenizer.merges)
    return kept + tables


def tokenizer_building_bytes(tokenizer: TokenizerOutline) -> int:
    """The most that it takes while it is built."""
    cost = _COSTS[tokenizer.kind]
    building = tokenizer.tokens * cost.building_token + tokenizer.merges * cost.building_merge
    building += cost.building_list * _buckets(tokenizer.merges)
    return _thought_bytes(tokenizer) + cost.building + building


def _buckets(entries: int) -> int:
    """Of a hash table that is at most seven eighths full."""
    return 1 << max(2, (entries * 8 // 7).bit_length())
