"""Tokens guessed ahead, so that one sweep may decide several: what a proposer is.

Source: Leviathan et al., arXiv 2211.17192; trees of guesses: SpecInfer, arXiv 2305.09781. Sampling
here is counter-based, so an answer does not change by it: a guess is kept where it is the very
token that would have been chosen without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from strata.errors import UsageError
from strata.records import dataclass


@dataclass(frozen=True)
class Draft:
    """Guessed tokens. ``parents`` gives for each the number of the one it follows, -1 for the last
    token that is certain; it comes before it. None: a chain, each follows the one before.

    ``chances`` says for each how likely it is, if the one that it follows is right; None: nobody
    knows. ``grades`` puts guesses of one kind together, so that their chances can be corrected by
    how often that kind was right.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] | None = None
    chances: tuple[float, ...] | None = None
    grades: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for beside in (self.chances, self.grades):
            if beside is not None and len(beside) != len(self.tokens):
                raise UsageError("a draft has a chance and a grade for each token, or none")
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

    def grade(self, number: int) -> int:
        """The kind of guess that token ``number`` is."""
        return 0 if self.grades is None else self.grades[number]

    def first(self, count: int) -> Draft:
        """The first ``count`` tokens; what they follow is among them."""
        return self if count >= len(self.tokens) else self.part(range(count))

    def part(self, numbers: Sequence[int]) -> Draft:
        """The tokens of these numbers, in this order; what they follow is among those before."""
        if self.parents is None and list(numbers) == list(range(len(numbers))):
            parents = None
        else:
            place = {-1: -1, **{number: at for at, number in enumerate(numbers)}}
            parents = tuple(place[self.parent(number)] for number in numbers)
        return Draft(
            tuple(self.tokens[n] for n in numbers),
            parents,
            None if self.chances is None else tuple(self.chances[n] for n in numbers),
            None if self.grades is None else tuple(self.grades[n] for n in numbers),
        )

    def path(self, tokens: Sequence[int]) -> list[int]:
        """The numbers of its tokens that ``tokens`` begin with, each behind the one it follows."""
        numbers = {(self.parent(n), token): n for n, token in enumerate(self.tokens)}
        found: list[int] = []
        for token in tokens:
            number = numbers.get((found[-1] if found else -1, token))
            if number is None:
                break
            found.append(number)
        return found

    def chains(self) -> list[tuple[int, ...]]:
        """The tokens in chains, by number: the first begins behind the last certain token and
        follows first children; each of the others branches off one that was given before."""
        if self.parents is None:
            return [tuple(range(len(self.tokens)))] if self.tokens else []
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
        return self.part([number for chain in self.chains() for number in chain])

    @property
    def chain(self) -> Draft:
        """Its first chain alone."""
        return self.part(next(iter(self.chains()), ()))


NO_DRAFT = Draft()
"""Nothing is guessed."""


class Proposer(Protocol):
    """Guesses how requests go on. Called between steps, in the engine's thread."""

    def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
        """Up to ``most`` tokens that may follow ``tokens``: prompt and answer so far of request
        ``id``, which are not to be changed and only grow from call to call. Those that come with a
        chance below ``least`` are of no use."""

    def end(self, id: int, tokens: Sequence[int]) -> None:
        """A request is over, or gone; ``tokens`` is all of it. It may never have been asked for."""
