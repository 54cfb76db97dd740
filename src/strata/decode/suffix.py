"""Guesses by looking up what followed the same words before: in the text, and in earlier ones.

An index (native, ``csrc/runtime/suffix_index.h``) finds the longest suffix of a text that occurred
before in some dozens of steps, however long the text is, and takes up new tokens as fast. What
followed at these places is a tree with counts. Prompt lookup: Saxena 2023; suffixes of earlier
answers with their counts: SuffixDecoding, arXiv 2411.04975.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.decode.proposer import NO_DRAFT, Draft

Tokens = NDArray[np.int32]

_LONGEST = 32
"""Tokens of a suffix that are compared at most: longer ones are guessed no better."""

_ENTERED = 8192
"""Tokens that the index takes up at once, so that a long prompt holds nobody up: some
milliseconds."""

END = -1
"""Between two texts."""

_PLACES = 24
"""Places of which the continuations are looked at, the last ones."""

_CHANCE = (0.0, 0.15, 0.3, 0.45, 0.55, 0.65, 0.7, 0.75, 0.8)
"""How likely a continuation is after so many tokens that are the same, until it is known better;
after more, it slowly comes near to 1."""

_SHARES = 4
"""Grades of how many of the places go on with a token."""

_LEAST = 0.02
"""Chance below which nothing is guessed further."""


class TokenHistory:
    """About the last ``capacity`` tokens of texts that are over. The oldest go first: of two
    halves the older one, once the newer one is full."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._older, self._newer = _native.SuffixIndex(), _native.SuffixIndex()

    @property
    def tokens(self) -> Tokens:
        """What is known, oldest first; texts are apart from each other by a -1."""
        first = len(self._older)
        found = np.empty(first + len(self._newer), np.int32)
        self._older.read(0, found[:first])
        self._newer.read(0, found[first:])
        return found

    def restore(self, tokens: Tokens) -> None:
        """Begin with what was known to an earlier one, or as much of its end as there is room for:
        ``tokens`` as that property gave them."""
        half = self.capacity // 2
        known = np.ascontiguousarray(tokens[len(tokens) - min(len(tokens), 2 * half) :], np.int32)
        self._older, self._newer = _native.SuffixIndex(), _native.SuffixIndex()
        self._older.append(known[: max(0, len(known) - half)])
        self._newer.append(known[max(0, len(known) - half) :])

    def add(self, tokens: Sequence[int] | Tokens) -> None:
        """Remember a text, or as much of its end as half of the room holds. It is found once
        ``enter`` was called often enough."""
        half = self.capacity // 2
        if half < 2 or not len(tokens):
            return
        new = np.array([*tokens[-(half - 1) :], END], np.int32)
        if len(self._newer) + len(new) > half:
            self._older, self._newer = self._newer, _native.SuffixIndex()
        self._newer.append(new)

    def enter(self, most: int) -> None:
        """Let ``most`` more tokens be found."""
        self._older.enter(most)
        self._newer.enter(most)

    def find(self, suffix: Tokens) -> Found:
        """Where the longest end of ``suffix`` is."""
        older, newer = Found.of(self._older, suffix), Found.of(self._newer, suffix)
        if older.length == newer.length:
            return Found(newer.length, (*older.places, *newer.places)[-_PLACES:])
        return max(older, newer, key=lambda found: found.length)


class SuffixProposer:
    """Proposes what followed the longest suffix that occurred before: in the request's own text,
    and in ``history`` where there is one. ``least`` tokens have to be the same."""

    def __init__(self, history: TokenHistory | None = None, *, least: int = 1) -> None:
        self.history = history
        self._least = least
        self._texts: dict[int, _native.SuffixIndex] = {}

    def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
        """See Proposer: a tree, the likeliest tokens first."""
        text = self._texts.setdefault(id, _native.SuffixIndex())
        text.append(np.array(tokens[len(text) :], np.int32))
        text.enter(_ENTERED)
        suffix = np.array(tokens[-_LONGEST:], np.int32)
        found = Found.of(text, suffix)
        if self.history is not None:
            self.history.enter(_ENTERED)
            before = self.history.find(suffix)
            found = before if before.length > found.length else found
        return self._grow(found, most, max(_LEAST, least))

    def end(self, id: int, tokens: Sequence[int]) -> None:
        """See Proposer: the text is remembered."""
        self._texts.pop(id, None)
        if self.history is not None:
            self.history.add(tokens)

    def _grow(self, found: Found, most: int, least: float) -> Draft:
        """The likeliest ``most`` tokens behind what was found, each at least so likely."""
        if found.length < max(1, self._least) or _chance(found.length) < least:
            return NO_DRAFT
        after = found.after(most)
        if after.count(after[0]) == len(after):
            return _chain(after[0], found.length, least)
        return _tree(after, found.length, most, least)


@dataclass(frozen=True)
class Found:
    """The last places before which the longest suffix of a text stands, each with the index that it
    is of, and its length; 0 and none where even its last token occurs nowhere."""

    length: int
    places: Sequence[tuple[_native.SuffixIndex, int]]

    @classmethod
    def of(cls, corpus: _native.SuffixIndex, suffix: Tokens) -> Found:
        """What is found of ``suffix`` in one index."""
        length, places = corpus.find(suffix, _PLACES)
        return cls(length, [(corpus, place) for place in places])

    def after(self, most: int) -> list[list[int]]:
        """``most`` tokens that follow each place. Behind the end it is what follows again."""
        found = []
        for corpus, place in self.places:
            tokens: list[int] = corpus.tokens(place, place + most)
            while len(tokens) < most:
                tokens += tokens[: most - len(tokens)]
            found.append(tokens)
        return found


def _chain(after: Sequence[int], length: int, least: float) -> Draft:
    """What follows one place, or all alike."""
    tokens, chances, likely = [], [], 1.0
    for depth, token in enumerate(after):
        chance = _chance(length + depth)
        likely *= chance
        if token < 0 or likely < least:
            break
        tokens.append(token)
        chances.append(chance)
    grades = [_grade(length + depth, 1.0) for depth in range(len(tokens))]
    return Draft(tuple(tokens), None, tuple(chances), tuple(grades))


@dataclass(order=True)
class _Way:
    """A token that may come next in a tree, the likeliest first: the number of the one before it,
    its depth, and the places, by number, of which it is the continuation."""

    less_likely: float
    order: int
    parent: int
    token: int
    depth: int
    chance: float
    grade: int
    places: list[int]


def _tree(after: Sequence[Sequence[int]], length: int, most: int, least: float) -> Draft:
    """What follows several places: the likeliest tokens, each behind the one before it."""
    ways: list[_Way] = []
    drafted: list[_Way] = []
    order = count()

    def look(parent: int, depth: int, likely: float, places: Sequence[int]) -> None:
        """Put what follows these places, that deep, with the ways to go on."""
        by_token: dict[int, list[int]] = {}
        for place in places:
            by_token.setdefault(after[place][depth], []).append(place)
        for token, following in by_token.items():
            share = len(following) / len(places)
            chance = _chance(length + depth) * share
            if token >= 0 and likely * chance >= least:
                grade = _grade(length + depth, share)
                way = (-likely * chance, next(order), parent, token, depth, chance, grade)
                heapq.heappush(ways, _Way(*way, following))

    look(-1, 0, 1.0, range(len(after)))
    while ways and len(drafted) < most:
        way = heapq.heappop(ways)
        drafted.append(way)
        if way.depth + 1 < most:
            look(len(drafted) - 1, way.depth + 1, -way.less_likely, way.places)
    parents = tuple(way.parent for way in drafted)
    return Draft(
        tuple(way.token for way in drafted),
        None if parents == tuple(range(-1, len(parents) - 1)) else parents,
        tuple(way.chance for way in drafted),
        tuple(way.grade for way in drafted),
    )


def _chance(length: int) -> float:
    return _CHANCE[length] if length < len(_CHANCE) else 1 - 1.6 / length


def _grade(length: int, share: float) -> int:
    """Lengths by powers of two, shares in four."""
    return min(length, _LONGEST).bit_length() * _SHARES + min(_SHARES - 1, int(share * _SHARES))
