"""The block of a model that predicts the token after the next one, as a draft model of that model,
and EAGLE's layer, which was trained to do so.

It sees what the model's last layer (or some of its layers) gave at each position, together with the
token that came next, and keeps KV of its own of them. Where it goes ahead, what it gave itself
stands in for the model's.
Rows of positions that the model did not compute for a request (a prefix that was found again) are
missing: the block begins behind them.

Source: DeepSeek-V3, arXiv 2412.19437, section 2.2; EAGLE, arXiv 2401.15077.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Step
from strata.decode import Draft
from strata.engine.draft_model import LEAST, STEP_ROWS, DraftModel
from strata.engine.guesser import right_rows
from strata.engine.runner import SEEN_ROWS, Runner
from strata.engine.scheduler import Advance
from strata.formats import ModelFile
from strata.program import Model
from strata.records import dataclass

_TOKEN = 40
"""Bytes of a token in a list, at most."""


def seen_bytes(model: Model, parallel: int) -> int:
    """Bytes of the rows of a step and of those that wait, and of the tokens of ``parallel``
    texts."""
    rows = 3 * SEEN_ROWS + 2 * parallel * STEP_ROWS
    width = model.segments[0].program.values["x"].width
    return rows * width * 4 + parallel * model.context_length * _TOKEN


@dataclass
class _Seen:
    """Of a text from position ``first`` on: the tokens behind that, and the rows [rows, width] that
    the model gave at positions ``first + begin ..``."""

    first: int
    rows: NDArray[np.float32]
    begin: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The position of which no row was seen yet."""
        return self.first + self.begin + len(self.rows)


class MtpDraft(DraftModel):
    """A DraftModel whose row ``i`` is of the model's row and the token behind it: it goes through
    the text from its second token on."""

    def __init__(
        self,
        runner: Runner,
        file: ModelFile,
        *,
        parallel: int,
        vocabulary: int,
        sees: tuple[int, ...],
        ids: NDArray[np.int64] | None = None,
        least: float = LEAST,
    ) -> None:
        super().__init__(
            runner, file, parallel=parallel, vocabulary=vocabulary, ids=ids, least=least
        )
        self.sees = sees
        self._seen: dict[int, _Seen] = {}
        # What it gave itself behind each text.
        self._given: dict[int, NDArray[np.float32]] = {}

    def observe_step(
        self,
        advances: Sequence[Advance],
        chosen: Mapping[int, Sequence[int]],
        rows: NDArray[np.float32],
    ) -> None:
        """See Guesser: ``observe`` what was right."""
        for right in right_rows(advances, chosen, rows):
            self.observe(*right)

    def observe(self, id: int, past: int, tokens: Sequence[int], rows: NDArray[np.float32]) -> None:
        """The model gave ``rows`` [rows, width] at positions ``past ..`` of a request, whose tokens
        from there on are ``tokens``: as many, or one more that was chosen."""
        if id not in self._samplers:
            return
        seen = self._seen.get(id)
        if seen is None or past > seen.end:
            self._forget(id)
            seen = self._seen[id] = _Seen(past, rows[:0])
        seen.tokens += tokens[seen.first + 1 + len(seen.tokens) - past :]
        new = rows[max(0, seen.end - past) :]
        done = self._done(id) - seen.begin
        seen.rows, seen.begin = np.concatenate([seen.rows[done:], new]), seen.begin + done
        self._go_along(id, seen)

    def _go_along(self, id: int, seen: _Seen) -> None:
        """Compute rows before they are too many to keep."""
        while len(seen.tokens) - self._done(id) > STEP_ROWS:
            if self._following(id, seen.tokens, 1, {id: seen.tokens}) is None:
                return
            self._make_up(id, seen.tokens, STEP_ROWS)

    def _done(self, id: int) -> int:
        follower = self._followers.get(id)
        return 0 if follower is None else follower.kv.length

    def behind(self, id: int, text: Sequence[int]) -> int:
        """See Guesser: it goes along with what the model gives."""
        return 0

    def propose(
        self, texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
    ) -> dict[int, Draft]:
        """See DraftModel; a chain, since what it gave before its last token is gone."""
        behind = {
            id: seen.tokens
            for id, text in texts.items()
            if (seen := self._seen.get(id)) is not None
            and seen.end == len(text) - 1 == seen.first + len(seen.tokens)
        }
        drafts = super().propose(behind, most)
        for follower in self._followers.values():
            # What the model gives at these positions is better than what stood in for it.
            follower.ahead.clear()
        return drafts

    def _logits(
        self, step: Step, parts: Mapping[int, Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        backend, state = self._runner.backend, self._memory.state
        enter, block, head = self._runner.loaded
        pairs = [self._rows_of(id, len(part)) for id, part in parts.items()]
        values = backend.import_({"x": np.concatenate([rows for rows, _ in pairs])}, step)
        if all(certain for _, certain in pairs):
            values = backend.run(enter, step, state, values)
        values = backend.run(block, step, state, values)
        if len(step.logits_indices) == 0:
            return
        given = backend.export(values, ("x",))["x"]
        self._given = {
            id: given[i : i + 1] for id, i in zip(parts, step.logits_indices, strict=True)
        }
        yield backend.export(backend.run(head, step, state, values), ("logits",))["logits"]

    def _rows_of(self, id: int, count: int) -> tuple[NDArray[np.float32], bool]:
        """The rows for the next tokens of a text, and whether they are the model's own."""
        seen = self._seen[id]
        at = self._done(id) - seen.begin
        if at < len(seen.rows):
            return seen.rows[at : at + count], True
        return self._given[id], False

    def _forget(self, id: int) -> None:
        super()._forget(id)
        self._seen.pop(id, None)
