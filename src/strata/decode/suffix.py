"""Guesses by looking up what followed the same words before: in the text, and in earlier ones.

The longest suffix of a text that occurred before is found by looking at all places at once, which
needs no index: four bytes a token, and some microseconds for a hundred thousand of them. What
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

from strata.decode.proposer import NO_DRAFT, Draft

Tokens = NDArray[np.int32]

_LONGEST = 32
"""Tokens of a suffix that are compared at most: longer ones are guessed no better."""

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
    """The last ``capacity`` tokens of texts that are over. The oldest go first."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.empty(capacity, np.int32)
        self._length = 0

    @property
    def capacity(self) -> int:
        """Tokens that there is room for."""
        return len(self._tokens)

    @property
    def tokens(self) -> Tokens:
        """What is known, oldest first; texts are apart from each other by a -1."""
        return self._tokens[: self._length]

    def add(self, tokens: Sequence[int] | Tokens) -> None:
        """Remember a text, or as much of its end as there is room for."""
        capacity = len(self._tokens)
        new = np.asarray(tokens, np.int32)[-(capacity - 1) :] if capacity > 1 else np.empty(0)
        if not len(new):
            return
        added = len(new) + 1
        if self._length + added > capacity:
            # Half of it, so that it is not moved each time.
            kept = max(0, min(capacity // 2, capacity - added))
            self._tokens[:kept] = self._tokens[self._length - kept : self._length].copy()
            self._length = kept
        self._tokens[self._length : self._length + len(new)] = new
        self._tokens[self._length + len(new)] = -1
        self._length += added


class _Text:
    """Tokens of a request in an array that grows with them."""

    def __init__(self) -> None:
        self._tokens = np.empty(256, np.int32)
        self._length = 0

    def update(self, tokens: Sequence[int]) -> Tokens:
        """All ``tokens``, of which those of the last call are the first."""
        length = len(tokens)
        if length > len(self._tokens):
            grown = np.empty(max(length, 2 * len(self._tokens)), np.int32)
            grown[: self._length] = self._tokens[: self._length]
            self._tokens = grown
        self._tokens[self._length : length] = tokens[self._length :]
        self._length = length
        return self._tokens[:length]


class SuffixProposer:
    """Proposes what followed the longest suffix that occurred before: in the request's own text,
    and in ``history`` where there is one. ``least`` tokens have to be the same."""

    def __init__(self, history: TokenHistory | None = None, *, least: int = 1) -> None:
        self.history = history
        self._least = least
        self._texts: dict[int, _Text] = {}

    def propose(self, id: int, tokens: Sequence[int], most: int) -> Draft:
        """See Proposer: a tree, the likeliest tokens first."""
        text = self._texts.setdefault(id, _Text()).update(tokens)
        found = _longest_match(text, text)
        if self.history is not None:
            before = _longest_match(self.history.tokens, text)
            if before[1] > found[1]:
                return self._grow(self.history.tokens, *before, most)
        return self._grow(text, *found, most)

    def end(self, id: int, tokens: Sequence[int]) -> None:
        """See Proposer: the text is remembered."""
        self._texts.pop(id, None)
        if self.history is not None:
            self.history.add(tokens)

    def _grow(self, corpus: Tokens, places: NDArray[np.int64], length: int, most: int) -> Draft:
        """The likeliest ``most`` tokens behind places that have ``length`` tokens in common."""
        if length < self._least:
            return NO_DRAFT
        last = places[-_PLACES:].tolist()
        return (
            _chain(corpus, last[0], length, most)
            if len(last) == 1
            else _tree(corpus, last, length, most)
        )


def _chain(corpus: Tokens, place: int, length: int, most: int) -> Draft:
    """What follows one place. Behind the end of the text it is what follows again."""
    after = corpus[place : place + most].tolist()
    while len(after) < most:
        after += after[: most - len(after)]
    tokens, chances, likely = [], [], 1.0
    for depth, token in enumerate(after):
        chance = _chance(length + depth)
        likely *= chance
        if token < 0 or likely < _LEAST:
            break
        tokens.append(token)
        chances.append(chance)
    grades = [_grade(length + depth, 1.0) for depth in range(len(tokens))]
    return Draft(tuple(tokens), None, tuple(chances), tuple(grades))


@dataclass(order=True)
class _Way:
    """A token that may come next in a tree, the likeliest first: the number of the one before it,
    its depth, and the places of which it is the continuation."""

    less_likely: float
    order: int
    parent: int
    token: int
    depth: int
    chance: float
    grade: int
    places: list[int]


def _tree(corpus: Tokens, places: list[int], length: int, most: int) -> Draft:
    """What follows several places: the likeliest tokens, each behind the one before it."""
    ways: list[_Way] = []
    drafted: list[_Way] = []
    end, order = len(corpus), count()

    def look(parent: int, depth: int, likely: float, at: list[int]) -> None:
        """Put what follows these places, that deep, with the ways to go on."""
        by_token: dict[int, list[int]] = {}
        for place in at:
            token = int(corpus[place + depth % (end - place)])
            by_token.setdefault(token, []).append(place)
        for token, following in by_token.items():
            share = len(following) / len(at)
            chance = _chance(length + depth) * share
            if token >= 0 and likely * chance >= _LEAST:
                grade = _grade(length + depth, share)
                way = (-likely * chance, next(order), parent, token, depth, chance, grade)
                heapq.heappush(ways, _Way(*way, following))

    look(-1, 0, 1.0, places)
    while ways and len(drafted) < most:
        way = heapq.heappop(ways)
        drafted.append(way)
        look(len(drafted) - 1, way.depth + 1, -way.less_likely, way.places)
    parents = tuple(way.parent for way in drafted)
    return Draft(
        tuple(way.token for way in drafted),
        None if parents == tuple(range(-1, len(parents) - 1)) else parents,
        tuple(way.chance for way in drafted),
        tuple(way.grade for way in drafted),
    )


def _longest_match(corpus: Tokens, text: Tokens) -> tuple[NDArray[np.int64], int]:
    """Where in ``corpus`` the longest suffix of ``text`` ends that something follows, as the places
    behind it, and its length; 0 if even the last token occurs nowhere."""
    if len(corpus) < 2 or not len(text):
        return np.empty(0, np.int64), 0
    places = np.flatnonzero(corpus[:-1] == text[-1]) + 1
    if not len(places):
        return places, 0
    length = 1
    while length < min(_LONGEST, len(text)):
        if len(places) == 1:
            return places, _common(corpus, text, int(places[0]), length)
        # Before the first token there is none.
        before = places[places > length]
        longer = before[corpus[before - 1 - length] == text[-1 - length]]
        if not len(longer):
            break
        places, length = longer, length + 1
    return places, length


def _common(corpus: Tokens, text: Tokens, place: int, length: int) -> int:
    """How many tokens before ``place`` are the end of ``text``, of which ``length`` are known."""
    most = min(_LONGEST, len(text), place)
    same = corpus[place - most : place][::-1] == text[len(text) - most :][::-1]
    wrong = np.flatnonzero(~same)
    return max(length, int(wrong[0]) if len(wrong) else most)


def _chance(length: int) -> float:
    return _CHANCE[length] if length < len(_CHANCE) else 1 - 1.6 / length


def _grade(length: int, share: float) -> int:
    """Lengths by powers of two, shares in four."""
    return min(length, _LONGEST).bit_length() * _SHARES + min(_SHARES - 1, int(share * _SHARES))
