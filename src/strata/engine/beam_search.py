"""Beam search: of all ways to go on, the few that are likeliest so far are gone along together.

Beams share the blocks of what they have in common, and are copied on write where they part; a step
has a row of each. A way that has come to an end token counts with the others by its score, the sum
of its log-probabilities over a power of its length, as transformers has it; nothing is drawn.
Which ways are found depends on the model's logits alone, as these on the tokens before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from strata.backends.base import Span, Step
from strata.decode import LogitsError, Sample
from strata.decode.sampling import report
from strata.engine.kv_settings import SequenceMemory
from strata.engine.runner import Runner
from strata.errors import UsageError
from strata.kv import KVCacheManager, PoolError, SequenceState
from strata.records import dataclass

MOST_BEAMS = 64
_SURELY = 1e-9
"""Of a score: by more than what rounding makes of it."""


@dataclass(frozen=True)
class BeamParams:
    """``width`` ways at a time, of which the best ``count`` are given, of at most ``max_tokens``
    tokens. The score is the sum of log-probabilities over length ** ``length_penalty``. With
    ``logprobs`` a beam has a sample of each token, with so many of the most probable ones."""

    width: int
    count: int
    max_tokens: int
    length_penalty: float = 1.0
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MOST_BEAMS:
            raise UsageError(f"a beam search has 1 to {MOST_BEAMS} beams, not {self.width}")
        if not 1 <= self.count <= self.width:
            raise UsageError(f"{self.count} answers are asked for, of {self.width} beams")
        if not -8 <= self.length_penalty <= 8:
            raise UsageError(f"length_penalty is {self.length_penalty}: from -8 to 8 is possible")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}: it has to be 1 at least")

    def within(self, room: int) -> BeamParams:
        """The same, of no more than ``room`` tokens."""
        return replace(self, max_tokens=min(self.max_tokens, room))


@dataclass(frozen=True)
class Beam:
    """A way to go on: its tokens, the sum of their log-probabilities, its score, and whether an end
    token, which is among them, was its last; ``told``, where it was asked for, of each token."""

    tokens: tuple[int, ...]
    logprob: float
    score: float
    ended: bool
    told: _Told | None = None

    @property
    def samples(self) -> list[Sample]:
        """Of each token, where log-probabilities were asked for; else none."""
        found, told = [], self.told
        while told is not None:
            found.append(told.sample)
            told = told.before
        return found[::-1]


@dataclass(frozen=True)
class _Told:
    """What is told of a token, and of those before it: beams that part share it."""

    sample: Sample
    before: _Told | None


@dataclass
class _Live:
    """A way that goes on, and its state."""

    tokens: tuple[int, ...]
    logprob: float
    kv: SequenceState
    told: _Told | None = None


class BeamSearch:
    """A search, step by step. It holds blocks beside those of running requests between its steps,
    until it is over or ``close`` is called."""

    def __init__(
        self, prompt: Sequence[int], params: BeamParams, stop_ids: frozenset[int] = frozenset()
    ) -> None:
        self.prompt, self.params = list(prompt), params
        self._stop_ids = frozenset() if params.ignore_eos else stop_ids
        self._memory: SequenceMemory | None = None
        self._live: list[_Live] = []
        self._ended: list[Beam] = []
        self._found: list[tuple[float, int, Sample]] = []
        self._steps = 0
        self.over = False
        self.cached_tokens = 0
        """Tokens of the prompt that were not computed."""

    @property
    def best(self) -> list[Beam]:
        """The best ways when it is over, the best first; of equal ones the one that ended first.
        Before that the best so far: none until the prompt is computed."""
        live = [
            self._beam(b.tokens, b.logprob, b.told, ended=False) for b in self._live if b.tokens
        ]
        ranked = sorted([*self._ended, *live], key=lambda beam: -beam.score)
        return ranked[: self.params.count]

    def step(self, runner: Runner, memory: SequenceMemory, token_budget: int) -> None:
        """Compute one step of the engine: part of the prompt, or of what the beams lack; with the
        last of it they are one token further. PoolError where there are too few free blocks:
        nothing is lost, and it may be tried again. What else fails ends the search."""
        try:
            if memory is not self._memory:
                # Blocks were made anew, by another budget.
                self._memory = memory
                known = memory.manager.match_prefix
                self._live = [
                    _Live(b.tokens, b.logprob, known([*self.prompt, *b.tokens]), b.told)
                    for b in self._live
                ] or [self._first(known(self.prompt))]
                self._found = []
            self._compute(runner, memory, token_budget)
            if all(beam.kv.length == self._length(beam) for beam in self._live):
                self._choose(self._found)
                self._found = []
        except PoolError:
            raise
        except BaseException:
            self.close()
            raise

    def _length(self, beam: _Live) -> int:
        return len(self.prompt) + len(beam.tokens)

    def _first(self, kv: SequenceState) -> _Live:
        self.cached_tokens = kv.length
        return _Live((), 0.0, kv)

    @property
    def holds_kv(self) -> bool:
        """Whether it has begun and is not over."""
        return self._memory is not None

    @property
    def computed_tokens(self) -> int:
        """Tokens in its KV, of the prompt and of one beam."""
        return self._live[0].kv.length if self._live else 0

    def close(self) -> None:
        """Give back all blocks; there are no more steps."""
        self.over = True
        if self._memory is not None:
            for beam in self._live:
                self._memory.manager.release(beam.kv)
        self._memory = None

    def _compute(self, runner: Runner, memory: SequenceMemory, token_budget: int) -> None:
        """A step, and what may come next by it: sums of log-probabilities, beams, tokens with
        theirs."""
        parts = self._parts(memory.manager, token_budget)
        step, wanted = self._batch(parts)
        numbers = iter(wanted)
        for logits in runner.run(step, memory.state):
            for row, number in zip(logits, numbers, strict=False):
                if not np.isfinite(row.max()):
                    raise LogitsError("the model gave logits that are not numbers")
                before = self._live[number].logprob
                # As many as may be needed, were all of those before them ends.
                needed, shown = self.params.width + len(self._stop_ids), self.params.logprobs or 0
                top = report(0, row, max(needed, shown)).top
                self._found += [
                    (before + chance, number, Sample(token, chance, top[:shown]))
                    for token, chance in top[:needed]
                ]
            del logits
        for number, count in parts:
            beam = self._live[number]
            memory.manager.commit(beam.kv, [*self.prompt, *beam.tokens], count)

    def _parts(self, manager: KVCacheManager, token_budget: int) -> list[tuple[int, int]]:
        """Beams that lack tokens, and how many of them the next step computes."""
        parts = []
        for number, beam in enumerate(self._live):
            total = self._length(beam)
            count = min(total - beam.kv.length, token_budget, manager.step_limit(beam.kv, total))
            if count > 0:
                if not manager.reserve(beam.kv, count):
                    raise PoolError(
                        f"{self.params.width} beams of {total} tokens do not fit the KV that is "
                        f"free: ask for fewer, or give a larger --parallel"
                    )
                parts.append((number, count))
                token_budget -= count
        return parts

    def _batch(self, parts: Sequence[tuple[int, int]]) -> tuple[Step, list[int]]:
        """The step of these parts, and the beams that have a row of logits then."""
        tokens: list[int] = []
        positions: list[int] = []
        spans, rows, wanted = [], [], []
        for number, count in parts:
            beam = self._live[number]
            past, text = beam.kv.length, [*self.prompt, *beam.tokens]
            tables = tuple(np.array(table, np.int32) for table in beam.kv.tables)
            spans.append(Span(len(tokens), count, past, tables))
            tokens += text[past : past + count]
            positions += range(past, past + count)
            if past + count == len(text):
                rows.append(len(tokens) - 1)
                wanted.append(number)
        arrays = (np.array(x, np.int32) for x in (tokens, positions, rows))
        ids, places, indices = arrays
        return Step(ids, places, tuple(spans), indices), wanted

    def _choose(self, candidates: list[tuple[float, int, Sample]]) -> None:
        """Go on with the likeliest of them, and keep those that have come to an end."""
        assert self._memory is not None
        manager, width = self._memory.manager, self.params.width
        # Of equal ones the beam that was likelier, and then the token with the lower number, since
        # they come in that order.
        candidates.sort(key=lambda candidate: -candidate[0])
        chosen: list[_Live] = []
        for rank, (logprob, number, sample) in enumerate(candidates):
            if rank >= width and len(chosen) == width:
                break
            parent, token = self._live[number], sample.token
            way = (*parent.tokens, token)
            told = None if self.params.logprobs is None else _Told(sample, parent.told)
            if token in self._stop_ids:
                if rank < width:
                    self._ended.append(self._beam(way, logprob, told, ended=True))
            elif len(chosen) < width:
                chosen.append(_Live(way, logprob, manager.fork(parent.kv), told))
        for parent in self._live:
            manager.release(parent.kv)
        self._live = chosen
        self._ended.sort(key=lambda beam: -beam.score)
        del self._ended[self.params.count :]
        self._steps += 1
        settled = self._settled()
        if self._steps == self.params.max_tokens or not chosen or settled:
            self.close()
        if settled:
            self._live = []

    def _settled(self) -> bool:
        """Whether no way that goes on can become one of the best: logprobs only fall."""
        if (
            len(self._ended) < self.params.count
            or self._steps == self.params.max_tokens
            or not self._live
        ):
            return False
        lengths = (self._steps + 1, self.params.max_tokens)
        most = max(self._score(self._live[0].logprob, length) for length in lengths)
        return most + _SURELY * abs(most) < self._ended[-1].score

    def _score(self, logprob: float, length: int) -> float:
        return float(logprob / length**self.params.length_penalty)

    def _beam(
        self, tokens: tuple[int, ...], logprob: float, told: _Told | None, *, ended: bool
    ) -> Beam:
        return Beam(tokens, logprob, self._score(logprob, len(tokens)), ended, told)
