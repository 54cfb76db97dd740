"""Heads that guess the tokens behind the next one, each by itself, of what the model's last layer
gave: as many tokens further on as there are heads, all in one pass and without KV.

Since no head knows what those before it chose, their likeliest tokens are put together to a tree:
the likeliest ways through it, as far as each is likely enough to pay for its row.

Source: Medusa, arXiv 2401.10774; blockwise parallel decoding, arXiv 1811.03115.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Backend, Span, Step
from strata.backends.weights import WeightSource
from strata.decode import Draft, LogitsError, Sampler
from strata.engine.draft_choice import DRAFT_TOKENS
from strata.engine.draft_model import LEAST, OTHERS, chance_of, graded, moved, widened
from strata.engine.guesser import right_rows
from strata.engine.runner import LoadProgress
from strata.engine.scheduler import Advance
from strata.formats import ModelFile
from strata.program import Model

WAYS = 4
"""Tokens that are looked at of each head: the first choice, and others."""

_Choices = list[list[tuple[int, float]]]


class MedusaDraft:
    """Guesses trees for up to ``parallel`` requests at once. See Guesser.

    No way is gone along that is less likely than ``least``.
    """

    def __init__(
        self,
        backend: Backend,
        model: Model,
        weights: WeightSource,
        file: ModelFile,
        progress: LoadProgress | None = None,
        *,
        sees: tuple[int, ...],
        parallel: int,
        vocabulary: int,
        least: float = LEAST,
    ) -> None:
        self._backend, self._file, self.sees = backend, file, sees
        self._parallel, self._vocabulary, self._least = parallel, vocabulary, least
        if progress:
            progress("loading", 0, file.nbytes)
        self._enter, *self._heads = backend.load(model.segments, weights)
        backend.prepare()
        self._state = backend.state_cache(model.state, ())
        self._samplers: dict[int, Sampler] = {}
        # Of each request the last right row, and how long its text is that the row speaks of.
        self._rows: dict[int, tuple[int, NDArray[np.float32]]] = {}
        self.step_s: float | None = None
        self.row_s = self.behind_s = 0.0

    def begin(self, id: int, sampler: Sampler) -> None:
        """See Guesser."""
        self._samplers[id] = sampler

    def end(self, id: int) -> None:
        """See Guesser."""
        self._samplers.pop(id, None)
        self._rows.pop(id, None)

    def observe_step(
        self,
        advances: Sequence[Advance],
        chosen: Mapping[int, Sequence[int]],
        rows: NDArray[np.float32],
    ) -> None:
        """See Guesser."""
        for id, past, tokens, right in right_rows(advances, chosen, rows):
            if id in self._samplers and chosen[id]:
                self._rows[id] = past + len(tokens), right[-1].copy()

    def behind(self, id: int, text: Sequence[int]) -> int:
        """See Guesser: a row is all that it knows of a text."""
        return 0

    def propose(
        self, texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
    ) -> dict[int, Draft]:
        """See Guesser."""
        asked = [
            id
            for id, text in texts.items()
            if id in self._samplers and id in self._rows and self._rows[id][0] == len(text)
        ][: self._parallel]
        depth = min(len(self._heads), max((most[id] for id in asked), default=0))
        if depth < 1:
            return {}
        began = perf_counter()
        found = self._choices(asked, most, depth, others)
        seconds = (perf_counter() - began) / depth
        self.step_s = moved(self.step_s, seconds)
        drafts = {id: tree(found[id], self._least, others) for id in asked}
        return {id: draft for id, draft in drafts.items() if draft.tokens}

    def _choices(
        self, asked: Sequence[int], most: Mapping[int, int], depth: int, others: float
    ) -> dict[int, _Choices]:
        """What each head would choose behind each text, the likeliest first, with how likely it is:
        as the request's sampler would, had the first choices before it been right."""
        rows = np.stack([self._rows[id][1] for id in asked])
        count = np.arange(len(asked), dtype=np.int32)
        step = Step(count, count, (Span(0, len(asked), 0, ()),), count)
        values = self._backend.run(
            self._enter, step, self._state, self._backend.import_({"x": rows}, step)
        )
        samplers = {id: self._samplers[id].without_grammar() for id in asked}
        likely = dict.fromkeys(asked, 1.0)
        found: dict[int, _Choices] = {id: [] for id in asked}
        for number, head in enumerate(self._heads[:depth]):
            given = self._backend.run(head, step, self._state, values)
            logits = self._backend.export(given, ("logits",))["logits"]
            for id, row in zip(asked, logits, strict=True):
                if number >= most[id] or likely[id] < self._least:
                    continue
                wide = widened(row, self._vocabulary)
                chosen = _ways(samplers[id], wide, others / likely[id])
                if not chosen:
                    likely[id] = 0.0
                    continue
                found[id].append(chosen)
                likely[id] *= chosen[0][1]
                samplers[id].accept(chosen[0][0])
            del given, logits
        return found

    def check_integrity(self) -> None:
        """There is no KV."""

    def close(self) -> None:
        """See Guesser."""
        self._backend.give_back(self._state)
        self._backend.close()
        self._file.close()


def _ways(sampler: Sampler, logits: NDArray[np.float32], least: float) -> list[tuple[int, float]]:
    """The token that would be chosen, and those that would be without it, if likelier than
    ``least``."""
    found: list[tuple[int, float]] = []
    rest = logits.copy()
    with suppress(LogitsError):
        while len(found) < WAYS:
            token = sampler.choose(rest).token
            chance = chance_of(logits, token)
            if found and chance <= least:
                break
            found.append((token, chance))
            rest[token] = -np.inf
    return found


def tree(choices: _Choices, least: float, others: float) -> Draft:
    """The likeliest ways through ``choices``, which have for each depth tokens and chances, the
    first choice first: those along first choices while they are as likely as ``least``, others
    while they are likelier than ``others``."""
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    grades: list[int] = []
    # By how likely a way is: depth, way at that depth, parent, and whether all were first choices.
    waiting: list[tuple[float, int, int, int, bool]] = []

    def consider(depth: int, parent: int, likely: float, *, first: bool) -> None:
        for way, (_, chance) in enumerate(choices[depth] if depth < len(choices) else ()):
            straight = first and way == 0
            enough = (
                not tokens or likely * chance >= least
                if straight
                else (likely * chance > max(least, others))
            )
            if enough:
                heappush(waiting, (-likely * chance, depth, way, parent, straight))

    consider(0, -1, 1.0, first=True)
    while waiting and len(tokens) < DRAFT_TOKENS:
        negative, depth, way, parent, straight = heappop(waiting)
        token, chance = choices[depth][way]
        tokens.append(token)
        parents.append(parent)
        chances.append(chance)
        grades.append(graded(chance, *(() if way == 0 else (OTHERS,))))
        consider(depth + 1, len(tokens) - 1, -negative, first=straight)
    chain = parents == list(range(-1, len(parents) - 1))
    return Draft(tuple(tokens), None if chain else tuple(parents), tuple(chances), tuple(grades))
