"""What guesses with a model, or a part of one, as whoever decides about guesses knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from strata.decode import Draft, Sampler
from strata.engine.scheduler import Advance


class Guesser(Protocol):
    """Guesses for several requests at once. Called between steps, in the engine's thread.

    ``sees``: the numbers of the model's Segments of which it is to be shown what they gave.
    ``step_s`` is what guessing one token further takes, for all that are asked for together;
    ``row_s`` what a token takes that it has to make up for, and ``behind_s`` what those of the last
    call took.
    """

    sees: tuple[int, ...]
    step_s: float | None
    row_s: float
    behind_s: float

    def begin(self, id: int, sampler: Sampler) -> None:
        """A request, whose tokens ``sampler`` chooses."""

    def end(self, id: int) -> None:
        """A request is over, or gone."""

    def behind(self, id: int, text: Sequence[int]) -> int:
        """Tokens of a request's text that it would have to make up for before it guesses."""

    def propose(
        self, texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
    ) -> dict[int, Draft]:
        """Up to ``most`` tokens each, one behind the other, that may follow ``texts``, which grow
        from call to call; and other ways that are likelier than ``others``. None for a text of
        which nothing is known."""

    def observe_step(
        self,
        advances: Sequence[Advance],
        chosen: Mapping[int, Sequence[int]],
        rows: NDArray[np.float32],
    ) -> None:
        """What it ``sees`` of these advances, or of their last ones, float32 [rows, widths], and
        the tokens that were chosen behind them, by id."""

    def check_integrity(self) -> None:
        """PoolError unless every KV block is free or held by a request."""

    def close(self) -> None:
        """Free what it takes."""


def right_rows(
    advances: Sequence[Advance],
    chosen: Mapping[int, Sequence[int]],
    rows: NDArray[np.float32],
) -> Iterator[tuple[int, int, list[int], NDArray[np.float32]]]:
    """Of each advance, as ``observe_step`` is shown them, what was right: the request, the position
    of the first row, the tokens from there on with those that were chosen, and the rows."""
    end = len(rows) - sum(a.rows for a in advances)
    for a in advances:
        begin, end = end, end + a.rows
        missing = max(0, -begin)
        if missing < len(a.tokens):
            right = [begin + len(a.tokens) + n for n in a.draft.path(chosen[a.id])]
            right = [*range(begin + missing, begin + len(a.tokens)), *right]
            yield a.id, a.past + missing, [*a.tokens[missing:], *chosen[a.id]], rows[right]
