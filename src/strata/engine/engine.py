"""The engine: requests go in, each step advances some of them, tokens and text come out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, Span, Step
from strata.decode import Sample, Sampler, SamplingParams, StopChecker, TextStream
from strata.engine.kv_settings import KVSettings, make_space
from strata.engine.pace import Pace
from strata.engine.request import Delta, Request
from strata.engine.runner import Runner
from strata.engine.scheduler import Advance, NoPace, Scheduler
from strata.engine.scoring import score
from strata.engine.status import EngineStatus
from strata.errors import StrataError, UsageError
from strata.kv import PoolError, blocks_for
from strata.program import Workload

TOKEN_BUDGET = 512
"""Tokens a step, by default: enough to use the weights well, few enough to keep others moving."""

QUEUE_LIMIT = 1024
"""Requests that may wait."""

SLOWDOWN = 1.4
"""What prompts may cost those being answered. Under the promised 1.5, because steps vary."""

LOAD_BYTES = 16 << 20
"""KV read from the disk between two steps that others wait for: some ten milliseconds."""


class EngineError(UsageError):
    """A request that this engine cannot serve."""


class ContextExceeded(EngineError):
    """A request that is too long for the context."""


class QueueFull(StrataError):
    """Too many requests wait already; try again later."""


class Engine:
    """Advances requests together, each independent of the others' presence.

    At most ``parallel`` requests run, of up to ``context`` positions each; ``kv`` says how much KV
    is held for all of them together. Requests for which there is no room wait their turn. While
    some are being answered, the prompt of another is taken in pieces such that a step takes at most
    about ``slowdown`` times as long, and as much more for each further prompt; None: pieces as
    large as the token budget allows. One thread at a time may call.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        context: int,
        parallel: int = 1,
        token_budget: int = TOKEN_BUDGET,
        stop_ids: frozenset[int] = frozenset(),
        kv: KVSettings | None = None,
        slowdown: float | None = SLOWDOWN,
    ) -> None:
        if not 1 <= context <= runner.model.context_length:
            raise EngineError(
                f"a context of {context} positions is asked for, "
                f"but this model has from 1 to {runner.model.context_length}"
            )
        if not 1 <= parallel <= token_budget:
            raise EngineError(
                f"{parallel} parallel requests do not fit a step of {token_budget} tokens"
            )
        self.runner = runner
        self.context = context
        self.token_budget = token_budget
        self._stop_ids = stop_ids
        settings = kv or KVSettings()
        self.kv_type, self._kv, self._space, self._keeper = make_space(
            settings, runner, context=context, parallel=parallel
        )
        self._pace = None if slowdown is None else Pace(slowdown)
        self._scheduler = Scheduler(
            self._space,
            parallel=parallel,
            token_budget=token_budget,
            pace=self._pace or NoPace(),
            load_blocks=max(1, LOAD_BYTES * self._kv.blocks // self._kv.nbytes),
        )
        self._requests: dict[int, Request] = {}
        self._ids = count()
        self._sweeps = 0
        self._tokens = 0
        self._hits = 0
        self._misses = 0
        self._last: Workload | None = None

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV held."""
        return self._kv.nbytes

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._requests)

    @property
    def queue_full(self) -> bool:
        """Whether ``submit`` would raise QueueFull."""
        return self._scheduler.waiting >= QUEUE_LIMIT

    def status(self) -> EngineStatus:
        """What is held and was done, as of now."""
        unused = self._space.unused
        return EngineStatus(
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            kv_blocks=self._space.pool.blocks,
            kv_blocks_free=unused,
            sweeps=self._sweeps,
            tokens=self._tokens,
            last=self._last,
            kv_blocks_cached=unused - self._space.pool.free,
            prefix_hit_tokens=self._hits,
            prefix_miss_tokens=self._misses,
            preemptions=self._scheduler.preemptions,
        )

    def computed(self, request: Request) -> int:
        """Positions of a request that are in KV: how far its prompt has come, while that runs.

        0 while it waits, also once it had to give way to others.
        """
        return self._scheduler.computed(request.id)

    def limit(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """Tokens that may follow ``prompt``; EngineError if it cannot be served at all."""
        self._check(prompt)
        room = self.context - len(prompt)
        if room < 1:
            raise ContextExceeded(
                f"the prompt has {len(prompt)} tokens and leaves no room in a context of "
                f"{self.context}; shorten it or raise the context"
            )
        limit = room if params.max_tokens is None else params.max_tokens
        if limit > room:
            raise ContextExceeded(
                f"a prompt of {len(prompt)} tokens and {limit} more do not fit a context of "
                f"{self.context}; ask for at most {room} tokens or raise the context"
            )
        return limit

    def _check(self, tokens: Sequence[int]) -> None:
        vocabulary = self.runner.model.vocab_size
        if not tokens:
            raise EngineError("the prompt is empty")
        if wrong := [t for t in tokens if not 0 <= t < vocabulary]:
            raise EngineError(f"token {wrong[0]} is not in the vocabulary of {vocabulary}")

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, text: TextStream | None = None
    ) -> Request:
        """Queue a request. ``text`` makes text of its tokens; without it there is none.

        Requests for the same prompt, as for several answers to it, share its computation and KV.
        Raises EngineError if it can never be served, QueueFull if it cannot be queued now.
        """
        limit = self.limit(prompt, params)
        if self.queue_full:
            raise QueueFull(f"{QUEUE_LIMIT} requests wait already; try again later")
        request = Request(
            id=next(self._ids),
            prompt=tuple(prompt),
            sampler=Sampler(params, prompt, self.runner.model.vocab_size),
            stop_checker=StopChecker(params, self._stop_ids, limit, text),
            submitted=perf_counter(),
        )
        self._requests[request.id] = request
        self._scheduler.add(request.id, prompt)
        return request

    def cancel(self, request: Request) -> None:
        """End a request now and free what it holds; one that is done stays as it is."""
        if self._requests.pop(request.id, None) is not None:
            request.cancelled = True
            self._scheduler.remove(request.id)

    def step(self) -> list[Delta]:
        """Advance some requests: plan, run, commit. Returns the tokens that were chosen.

        An exception or interrupt before the commit leaves every request as it was before the step;
        one within it cancels the requests of the step.
        """
        advances = self._scheduler.plan()
        if not advances:
            return []
        samples = self._run(advances)
        try:
            return self._commit(advances, samples)
        except BaseException:
            for id in [id for a in advances for id in (a.id, *a.forks)]:
                if id in self._requests:
                    self.cancel(self._requests[id])
            raise

    def _run(self, advances: list[Advance]) -> list[tuple[Request, Sample]]:
        """Samples of the requests that reach their last token. Changes none of them but for when
        it started."""
        now = perf_counter()
        step, reaching = self._batch(advances)
        samples: list[tuple[Request, Sample]] = []
        rows = (row for logits in self.runner.run(step, self._kv) for row in logits)
        for row, requests in zip(rows, reaching, strict=True):
            samples += [(request, request.sampler.choose(row)) for request in requests]
        self._observe(advances, perf_counter() - now)
        for advance in advances:
            for id, cached in self._ids_of(advance):
                self._start(self._requests[id], now, cached)
        return samples

    def _ids_of(self, advance: Advance) -> list[tuple[int, int]]:
        """The requests of an advance, each with the positions that were not computed for it."""
        past = advance.past + advance.rows
        return [(advance.id, advance.cached), *((id, past) for id in advance.forks)]

    def _start(self, request: Request, now: float, cached: int) -> None:
        if request.started is None:
            request.started = now
            request.cached_tokens = cached
            self._hits += cached
            self._misses += len(request.prompt) - cached

    def _batch(self, advances: list[Advance]) -> tuple[Step, list[list[Request]]]:
        """The step, and for each of its rows of logits the requests that choose from it."""
        tokens: list[int] = []
        positions: list[NDArray[np.int32]] = []
        spans: list[Span] = []
        out_rows: list[int] = []
        reaching: list[list[Request]] = []
        for a in advances:
            spans.append(Span(len(tokens), a.rows, a.past, np.array(a.table, np.int32)))
            tokens += a.tokens
            positions.append(np.arange(a.past, a.past + a.rows, dtype=np.int32))
            if a.reaches:
                out_rows.append(len(tokens) - 1)
                reaching.append([self._requests[id] for id in (a.id, *a.forks)])
        step = Step(
            np.array(tokens, np.int32),
            np.concatenate(positions),
            tuple(spans),
            np.array(out_rows, np.int32),
        )
        return step, reaching

    def _commit(
        self, advances: list[Advance], samples: list[tuple[Request, Sample]]
    ) -> list[Delta]:
        self._scheduler.commit(advances)
        self._count(advances)
        now = perf_counter()
        deltas = []
        for request, sample in samples:
            request.sampler.accept(sample.token)
            request.output.append(sample)
            request.first_token = now if request.first_token is None else request.first_token
            request.last_token = now
            text, request.finish_reason = request.stop_checker.push(sample.token)
            deltas.append(Delta(request, sample, text, request.finish_reason))
        for delta in deltas:
            if delta.finish_reason is None:
                self._scheduler.extend(delta.request.id, delta.sample.token)
            else:
                del self._requests[delta.request.id]
                self._scheduler.remove(delta.request.id, keep=True)
        return deltas

    def _observe(self, advances: list[Advance], seconds: float) -> None:
        tokens = sum(a.rows for a in advances)
        if tokens >= KV_BLOCK or self._scheduler.token_s is None:
            self._scheduler.token_s = seconds / tokens
        if self._pace is not None:
            answers = sum(a.reaches and a.rows == 1 for a in advances)
            self._pace.observe(answers, tokens - answers, seconds)

    def _count(self, advances: list[Advance]) -> None:
        out_rows = sum(a.reaches for a in advances)
        tokens = sum(a.rows for a in advances)
        attended = sum(a.rows * a.past + a.rows * (a.rows + 1) // 2 for a in advances)
        self._sweeps += 1
        self._tokens += tokens
        self._last = Workload(tokens, out_rows, attended // tokens)

    def logprobs(self, tokens: Sequence[int], first: int) -> NDArray[np.float64]:
        """Log-probabilities of ``tokens[first + 1:]``, each given all tokens before it.

        Uses KV beside that of running requests; PoolError if too little is free.
        """
        self._check(tokens)
        self.limit(tokens[:-1], SamplingParams(max_tokens=1))
        needed = blocks_for(len(tokens) - 1)
        table = self._space.take(needed)
        if table is None:
            raise PoolError(f"{needed} KV blocks are wanted, but {self._space.available} are free")
        try:
            return score(self.runner, self._kv, table, tokens, first, self.token_budget)
        finally:
            self._space.pool.release(table)

    def forget_prefixes(self) -> None:
        """Forget what could be found again in memory: the next prompt is computed."""
        self._space.forget()

    def close(self) -> None:
        """Finish what is being written to the store of prefixes. The engine is of no use after."""
        self._keeper.close()

    def check_integrity(self) -> None:
        """Raise PoolError unless every KV block is free or held by those that should."""
        self._scheduler.check_integrity()
