"""Proposers that know the answer and say it, or something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from strata.decode import Draft


class Oracle:
    """Guesses right with a probability, wrong otherwise, and now and then both in a tree; the same
    for the same tokens.

    ``answer`` gives the tokens that follow others; ``vocabulary`` bounds wrong ones.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[int]], Sequence[int]],
        right: float,
        *,
        vocabulary: int = 97,
        trees: bool = True,
    ) -> None:
        self._answer, self._right, self._vocabulary = answer, right, vocabulary
        self.trees = trees
        self.proposed = 0

    def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
        """A chain, a tree, or nothing."""
        random = Random(hash((len(tokens), *tokens[-3:])))
        right = list(self._answer(tokens))[: random.randint(0, most)]
        drafted: list[int] = []
        parents: list[int] = []
        at = -1
        for token in right:
            wrong = (token + 1 + random.randrange(self._vocabulary - 1)) % self._vocabulary
            said = token if random.random() < self._right else wrong
            if self.trees and random.random() < 0.4 and len(drafted) + 2 <= most:
                # Both, in either order, and a leaf behind the wrong one.
                pair = [token, wrong]
                random.shuffle(pair)
                drafted += pair
                parents += [at, at]
                at = len(drafted) - 2 + pair.index(token)
                if len(drafted) < most and random.random() < 0.5:
                    drafted.append(wrong)
                    parents.append(len(drafted) - 3 + pair.index(wrong))
            elif len(drafted) < most:
                drafted.append(said)
                parents.append(at)
                at = len(drafted) - 1
        self.proposed += len(drafted)
        return Draft(tuple(drafted), tuple(parents) if self.trees else None)

    def end(self, id: int, tokens: Sequence[int]) -> None:
        """Nothing is kept."""
