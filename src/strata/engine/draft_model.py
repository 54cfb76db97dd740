"""A smaller model that guesses how requests go on: resident, with weights and KV of its own.

It follows each request some tokens behind, and goes ahead of it token by token when it is asked to;
where it was least sure it may then go another way, too, so that a draft is a chain with a branch.
What it went ahead with is kept where the request went the same way, and else written over; nothing
is computed twice. It chooses as the request's own sampler would, with the same random numbers, so
that a draft that is certain of the same things guesses right also where answers are sampled.

Source: Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Span, Step
from strata.decode import Draft, LogitsError, Sampler
from strata.engine.kv_settings import KVSettings, make_memory
from strata.engine.runner import Runner
from strata.engine.scheduler import Advance
from strata.formats import ModelFile
from strata.kv import SequenceState
from strata.records import dataclass

STEP_ROWS = 64
"""Tokens of a text that a step of the draft model makes up for at most."""

_BEHIND = 512
"""Tokens of a text that are made up for at once, before somebody waits for the next ones."""

_FEW = 8
"""Tokens behind of which the last step before guessing may have to make up."""


def step_rows(parallel: int) -> int:
    """Rows of a step of a draft model for so many texts at most."""
    return max(STEP_ROWS, parallel * _FEW)


_NOBODY = -1
"""No request has this number."""

LEAST = 0.05
"""Chance of all tokens so far below which nothing is guessed further."""

_STEP = 0.2
"""By how much of its surprise a measured time moves what is known."""

GRADES = 1 << 10
"""Where the kinds of guesses of a model begin; those of looking up are below."""

_GRADES = 8
"""Kinds of guesses, by how sure the draft model was."""

OTHERS = GRADES - 16
"""Where the kinds of guesses begin that are not the draft model's first choice."""


@dataclass
class _Follower:
    """How far the draft model is with a request: ``kv`` is certain, and ``ahead`` the tokens that
    were computed behind it without being so."""

    kv: SequenceState
    ahead: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Other:
    """A way that a draft did not take: its first ``token`` in place of token ``number``, so likely
    behind what is before it and in all, and the state in which it would have been chosen."""

    number: int
    token: int
    chance: float
    likely: float
    sampler: Sampler


@dataclass
class _Growing:
    """A draft while it is made, of no more than ``most`` tokens behind each other; ``others``: the
    least chance of a way that it did not take to be looked at."""

    sampler: Sampler
    most: int
    others: float
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    grades: list[int] = field(default_factory=list)
    likely: float = 1.0
    depth: int = 0
    other: _Other | None = None

    def grow(self, logits: NDArray[np.float32], least: float) -> int | None:
        """Take what comes next by ``logits`` [vocabulary], unless all together is less likely than
        ``least``; the token if it is to be gone on with."""
        try:
            token = self.sampler.choose(logits).token
        except LogitsError:
            return None
        chance = chance_of(logits, token)
        if self.likely * chance < least and self.tokens:
            return None
        self._consider(logits, token, chance)
        self._take(token, chance, GRADES)
        return token if self.depth < self.most else None

    def branch(self) -> int | None:
        """Go on along the likeliest way that was not taken, which begins with this token; None
        where there is none."""
        other = self.other
        if other is None:
            return None
        self.other, self.others, self.sampler = None, 1.0, other.sampler
        self.depth, self.likely = other.number, other.likely / other.chance
        self._take(other.token, other.chance, OTHERS, other.number - 1)
        return other.token if self.depth < self.most else None

    def _consider(self, logits: NDArray[np.float32], token: int, chance: float) -> None:
        least = self.others if self.other is None else max(self.others, self.other.likely)
        if self.likely * (1 - chance) <= least:
            return
        rest = logits.copy()
        rest[token] = -np.inf
        with suppress(LogitsError):
            second = self.sampler.choose(rest).token
            chance = chance_of(logits, second)
            if self.likely * chance > least:
                sampler = self.sampler.without_grammar()
                number = len(self.tokens)
                self.other = _Other(number, second, chance, self.likely * chance, sampler)

    def _take(self, token: int, chance: float, grades: int, parent: int | None = None) -> None:
        self.sampler.accept(token)
        self.parents.append(len(self.tokens) - 1 if parent is None else parent)
        self.tokens.append(token)
        self.chances.append(chance)
        self.grades.append(graded(chance, grades))
        self.likely *= chance
        self.depth += 1

    @property
    def draft(self) -> Draft:
        """What there is of it."""
        chain = self.parents == list(range(-1, len(self.parents) - 1))
        parents = None if chain else tuple(self.parents)
        return Draft(tuple(self.tokens), parents, tuple(self.chances), tuple(self.grades))


class DraftModel:
    """Guesses chains of tokens, each with a branch where one is likely enough, for up to
    ``parallel`` requests at once. Called between steps, in the engine's thread.

    ``step_s`` is what guessing one token more takes, for all that are asked for together;
    ``row_s`` what a token takes that it has to make up for, and ``behind_s`` what those of the last
    call took; ``try_out`` measures both before anybody waits for them. No chain goes on that is
    less likely than ``least``. ``ids`` are the tokens that it chooses from, where they are not
    those below ``vocabulary``.
    """

    def __init__(
        self,
        runner: Runner,
        file: ModelFile,
        *,
        parallel: int,
        vocabulary: int,
        ids: NDArray[np.int64] | None = None,
        least: float = LEAST,
    ) -> None:
        self._runner, self._file = runner, file
        self.sees: tuple[int, ...] = ()
        self._ids = ids
        self.context = runner.model.context_length
        self._parallel, self._vocabulary, self._least = parallel, vocabulary, least
        self._memory = make_memory(
            KVSettings(prefix_cache=False),
            runner,
            context=self.context,
            parallel=parallel,
            step_rows=step_rows(parallel),
            token_s=lambda: None,
        )
        self._followers: dict[int, _Follower] = {}
        self._samplers: dict[int, Sampler] = {}
        self.step_s: float | None = None
        self.row_s = self.behind_s = 0.0

    def try_out(self) -> None:
        """Measure a step of a few tokens and one of a single one, for nobody."""
        manager, kv = self._memory.manager, self._memory.manager.new()
        self._followers[_NOBODY] = _Follower(kv)
        if manager.reserve(kv, _FEW):
            for count in (_FEW, 1):
                began = perf_counter()
                self._run({_NOBODY: [0] * count})
                self.step_s = perf_counter() - began
                if count == _FEW:
                    self.row_s = self.step_s / _FEW
        self._forget(_NOBODY)

    def begin(self, id: int, sampler: Sampler) -> None:
        """A request, whose tokens ``sampler`` chooses."""
        self._samplers[id] = sampler

    def end(self, id: int) -> None:
        """A request is over, or gone."""
        self._samplers.pop(id, None)
        self._forget(id)

    def _forget(self, id: int) -> None:
        follower = self._followers.pop(id, None)
        if follower is not None:
            self._memory.manager.release(follower.kv)

    def observe_step(
        self,
        advances: Sequence[Advance],
        chosen: Mapping[int, Sequence[int]],
        rows: NDArray[np.float32],
    ) -> None:
        """It sees nothing."""

    def behind(self, id: int, text: Sequence[int]) -> int:
        """See Guesser; what it went ahead with counts as right."""
        follower = self._followers.get(id)
        done = 0 if follower is None else follower.kv.length + len(follower.ahead)
        return max(0, len(text) - done - _FEW)

    def propose(
        self, texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
    ) -> dict[int, Draft]:
        """Up to ``most`` tokens each, one behind the other, that may follow ``texts``, which grow
        from call to call; and as many along another way that is likelier than ``others``. None for
        a text that is too long, has no room, or of which too much is to be made up for."""
        began = perf_counter()
        left = _BEHIND
        ready: list[int] = []
        for id, text in texts.items():
            if len(ready) == self._parallel or id not in self._samplers:
                continue
            count = min(most[id], self.context - len(text))
            if count < 1 or (follower := self._following(id, text, count, texts)) is None:
                continue
            left -= self._make_up(id, text, left)
            if len(text) - follower.kv.length <= _FEW:
                ready.append(id)
        self.behind_s = perf_counter() - began
        if left < _BEHIND:
            self.row_s = moved(self.row_s or None, self.behind_s / (_BEHIND - left))
        return self._guess(ready, texts, most, others) if ready else {}

    def _following(
        self, id: int, text: Sequence[int], count: int, asked: Mapping[int, Sequence[int]]
    ) -> _Follower | None:
        """The follower of a text, with what it went ahead with as far as that was right, and blocks
        for ``count`` tokens more; None without room."""
        manager = self._memory.manager
        follower = self._followers.get(id)
        if follower is None:
            follower = self._followers[id] = _Follower(manager.new())
        right = 0
        # The last token is computed in any case: its logits are wanted.
        for guessed, said in zip(follower.ahead, text[follower.kv.length : -1], strict=False):
            if guessed != said:
                break
            right += 1
        follower.ahead.clear()
        manager.commit(follower.kv, text, right, known=False)
        rows = len(text) - follower.kv.length + count - 1
        others = [other for other in self._followers if other not in asked]
        while not manager.reserve(follower.kv, rows):
            if not others:
                self._forget(id)
                return None
            self._forget(others.pop())
        return follower

    def _make_up(self, id: int, text: Sequence[int], most: int) -> int:
        """Compute up to ``most`` tokens of a text, but for the last ones; how many."""
        done, kv = 0, self._followers[id].kv
        while (missing := len(text) - kv.length) > _FEW and done < most:
            count = min(missing - 1, STEP_ROWS)
            self._run({id: text[kv.length : kv.length + count]}, wanted=False)
            self._memory.manager.commit(kv, text, count, known=False)
            done += count
        return done

    def _guess(
        self,
        ids: Sequence[int],
        texts: Mapping[int, Sequence[int]],
        most: Mapping[int, int],
        others: float,
    ) -> dict[int, Draft]:
        """One token after the other, all texts together; then, all together, other ways."""
        growing = {
            id: _Growing(
                self._samplers[id].without_grammar(),
                min(most[id], self.context - len(texts[id])),
                others,
            )
            for id in ids
        }
        tails = {id: list(texts[id][self._followers[id].kv.length :]) for id in ids}
        self._go_ahead(tails, texts, growing)
        branches = {}
        for id, draft in growing.items():
            begins = 0 if draft.other is None else draft.other.number
            token = draft.branch()
            if token is not None:
                # What lies behind is written over, and computed anew where it was right.
                del self._followers[id].ahead[begins:]
                branches[id] = [token]
        self._go_ahead(branches, texts, growing)
        return {id: draft.draft for id, draft in growing.items() if draft.tokens}

    def _go_ahead(
        self,
        next_up: Mapping[int, Sequence[int]],
        texts: Mapping[int, Sequence[int]],
        growing: Mapping[int, _Growing],
    ) -> None:
        """Compute these tokens, and then those that are taken behind them, until none is."""
        while next_up:
            began = perf_counter()
            rows = self._run(next_up)
            for id, part in next_up.items():
                follower = self._followers[id]
                if growing[id].tokens:
                    follower.ahead += part
                else:
                    self._memory.manager.commit(follower.kv, texts[id], len(part), known=False)
            taken = {id: growing[id].grow(logits, self._least) for id, logits in rows.items()}
            next_up = {id: [token] for id, token in taken.items() if token is not None}
            self._took(perf_counter() - began)

    def _took(self, seconds: float) -> None:
        self.step_s = moved(self.step_s, seconds)

    def _run(
        self, parts: Mapping[int, Sequence[int]], *, wanted: bool = True
    ) -> dict[int, NDArray[np.float32]]:
        """Compute some tokens of each text, and where ``wanted`` the logits behind the last one of
        each."""
        tokens: list[int] = []
        positions: list[int] = []
        spans, last = [], []
        for id, part in parts.items():
            follower = self._followers[id]
            past = follower.kv.length + len(follower.ahead)
            tables = tuple(np.array(table, np.int32) for table in follower.kv.tables)
            spans.append(Span(len(tokens), len(part), past, tables))
            tokens += part
            positions += range(past, past + len(part))
            last.append(len(tokens) - 1)
        step = Step(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            tuple(spans),
            np.array(last if wanted else [], np.int32),
        )
        found = []
        for logits in self._logits(step, parts):
            for row in logits:
                found.append(widened(row, self._vocabulary, self._ids))
            del logits
        return dict(zip(parts, found, strict=True)) if wanted else {}

    def _logits(
        self, step: Step, parts: Mapping[int, Sequence[int]]
    ) -> Iterator[NDArray[np.float32]]:
        """Run a step of these parts of texts, as ``Runner.run`` does."""
        yield from self._runner.run(step, self._memory.state)

    def check_integrity(self) -> None:
        """PoolError unless every KV block is free or held by one that follows a request."""
        held = [follower.kv.tables for follower in self._followers.values()]
        self._memory.manager.check_integrity(held)

    def close(self) -> None:
        """Free the weights and KV."""
        self._runner.backend.give_back(self._memory.state)
        self._runner.backend.close()
        self._file.close()


def graded(chance: float, kind: int = GRADES) -> int:
    """The kind of a guess that is so likely."""
    return kind + min(_GRADES - 1, int(_GRADES * chance))


def moved(known: float | None, seconds: float) -> float:
    """What is known of a time after it was measured once more."""
    return seconds if known is None else known + _STEP * (seconds - known)


def widened(
    row: NDArray[np.float32], vocabulary: int, ids: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Logits [vocabulary] of as many tokens as a sampler knows, from those of some of them:
    ``ids``, or the first ones; those that pad a vocabulary are none."""
    wide = np.full(vocabulary, -np.inf, np.float32)
    if ids is None:
        wide[: len(row)] = row[:vocabulary]
    else:
        wide[ids] = row
    return wide


def chance_of(logits: NDArray[np.float32], token: int) -> float:
    """Of a token, by its logits."""
    most = float(logits.max())
    return float(np.exp(logits[token] - most) / np.exp(logits - most).sum())
