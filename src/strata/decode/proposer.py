"""Tokens guessed ahead, so that one sweep may decide several: what a proposer is.

Source: Leviathan et al., arXiv 2211.17192; trees of guesses: SpecInfer, arXiv 2305.09781. Sampling
here is counter-based, so an answer does not change by it: a guess is kept where it is the very
token that would have been chosen without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from strata.errors import UsageError


@dataclass(frozen=True)
class Draft:
    """Guessed tokens. ``parents`` gives for each the number of the one it follows, -1 for the last
    token that is certain; it comes before it. None: a chain, each follows the one before."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.parents is None:
            return
        if len(self.parents) != len(self.tokens) or any(
            not -1 <= parent < number for number, parent in enumerate(self.parents)
        ):
            raise UsageError("a draft gives each token one that comes before it as its parent")
        seen = set(zip(self.parents, self.tokens, strict=True))
        if len(seen) < len(self.tokens):
            raise UsageError("a draft has the same token twice after another one")

    def parent(self, number: int) -> int:
        """The number of the token that token ``number`` follows."""
        return number - 1 if self.parents is None else self.parents[number]

    def first(self, count: int) -> Draft:
        """The first ``count`` tokens; what they follow is among them."""
        parents = None if self.parents is None else self.parents[:count]
        return Draft(self.tokens[:count], parents)

    def chains(self) -> list[tuple[int, ...]]:
        """The tokens in chains, by number: the first begins behind the last certain token and
        follows first children; each of the others branches off one that was given before."""
        children: dict[int, list[int]] = {}
        for number in range(len(self.tokens)):
            children.setdefault(self.parent(number), []).append(number)
        chains: list[tuple[int, ...]] = []
        begins = children.get(-1, [])
        while begins:
            chain = [begins.pop(0)]
            while following := children.get(chain[-1]):
                begins += following[1:]
                chain.append(following[0])
            chains.append(tuple(chain))
        return chains

    @property
    def in_chains(self) -> Draft:
        """The same draft with its tokens in the order of its chains."""
        if self.parents is None:
            return self
        order = [number for chain in self.chains() for number in chain]
        place = {-1: -1, **{number: at for at, number in enumerate(order)}}
        return Draft(
            tuple(self.tokens[number] for number in order),
            tuple(place[self.parent(number)] for number in order),
        )

    @property
    def chain(self) -> Draft:
        """Its first chain alone."""
        numbers = next(iter(self.chains()), ())
        return Draft(tuple(self.tokens[number] for number in numbers))


NO_DRAFT = Draft()
"""Nothing is guessed."""


class Proposer(Protocol):
    """Guesses how requests go on. Called between steps, in the engine's thread."""

    def propose(self, tokens: Sequence[int], most: int) -> Draft:
        """Up to ``most`` tokens that may follow ``tokens``, prompt and answer so far, which are not
        to be changed."""
