"""The engine: requests go in, each step advances some of them, tokens and text come out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Span, Step
from strata.decode import Ending, Sample, Sampler, SamplingParams, TextStream
from strata.engine.request import Delta, Request
from strata.engine.runner import Runner
from strata.engine.scheduler import Advance, Scheduler, blocks_for
from strata.engine.scoring import score
from strata.engine.status import EngineStatus
from strata.errors import StrataError, UsageError
from strata.kv import BlockPool
from strata.program import Workload

TOKEN_BUDGET = 512
"""Tokens a step, by default: enough to use the weights well, few enough to keep others moving."""

QUEUE_LIMIT = 1024
"""Requests that may wait."""


class EngineError(UsageError):
    """A request that this engine cannot serve: too long for the context, or tokens it lacks."""


class QueueFull(StrataError):
    """Too many requests wait already; try again later."""


class Engine:
    """Advances requests together, each independent of the others' presence.

    KV is held for ``parallel`` sequences of ``context`` positions. Requests for which there is no
    room wait their turn. One thread at a time may call.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        context: int,
        parallel: int = 1,
        token_budget: int = TOKEN_BUDGET,
        stop_ids: frozenset[int] = frozenset(),
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
        blocks = parallel * blocks_for(context)
        self._pool = BlockPool(blocks)
        self._kv = runner.kv_cache(blocks)
        self._scheduler = Scheduler(self._pool, parallel=parallel, token_budget=token_budget)
        self._requests: dict[int, Request] = {}
        self._ids = count()
        self._sweeps = 0
        self._tokens = 0
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
        return EngineStatus(
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            kv_blocks=self._pool.blocks,
            kv_blocks_free=self._pool.free,
            sweeps=self._sweeps,
            tokens=self._tokens,
            last=self._last,
        )

    def computed(self, request: Request) -> int:
        """Positions of a request that are in KV: how far its prompt has come, while that runs."""
        return self._scheduler.computed(request.id)

    def limit(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """Tokens that may follow ``prompt``; EngineError if it cannot be served at all."""
        self._check(prompt)
        room = self.context - len(prompt)
        if room < 1:
            raise EngineError(
                f"the prompt has {len(prompt)} tokens and leaves no room in a context of "
                f"{self.context}; shorten it or raise the context"
            )
        limit = room if params.max_tokens is None else params.max_tokens
        if limit > room:
            raise EngineError(
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

        Raises EngineError if it can never be served, QueueFull if it cannot be queued now.
        """
        limit = self.limit(prompt, params)
        if self.queue_full:
            raise QueueFull(f"{QUEUE_LIMIT} requests wait already; try again later")
        request = Request(
            id=next(self._ids),
            prompt=tuple(prompt),
            sampler=Sampler(params, prompt, self.runner.model.vocab_size),
            ending=Ending(params, self._stop_ids, limit, text),
            submitted=perf_counter(),
        )
        self._requests[request.id] = request
        # The last token of an answer is chosen and never computed.
        self._scheduler.add(request.id, len(prompt), len(prompt) + limit - 1)
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
            for advance in advances:
                if advance.id in self._requests:
                    self.cancel(self._requests[advance.id])
            raise

    def _run(self, advances: list[Advance]) -> list[Sample]:
        """Samples of the advances that reach their target, in order. Changes no request."""
        now = perf_counter()
        step, reaching = self._batch(advances)
        samples: list[Sample] = []
        for logits in self.runner.run(step, self._kv):
            for row in logits:
                samples.append(reaching[len(samples)].sampler.choose(row))
        for advance in advances:
            request = self._requests[advance.id]
            request.started = now if request.started is None else request.started
        return samples

    def _batch(self, advances: list[Advance]) -> tuple[Step, list[Request]]:
        tokens: list[int] = []
        positions: list[NDArray[np.int32]] = []
        spans: list[Span] = []
        out_rows: list[int] = []
        reaching: list[Request] = []
        for a in advances:
            request = self._requests[a.id]
            spans.append(Span(len(tokens), a.rows, a.past, np.array(a.table, np.int32)))
            tokens += request.slice(a.past, a.rows)
            positions.append(np.arange(a.past, a.past + a.rows, dtype=np.int32))
            if a.reaches:
                out_rows.append(len(tokens) - 1)
                reaching.append(request)
        step = Step(
            np.array(tokens, np.int32),
            np.concatenate(positions),
            tuple(spans),
            np.array(out_rows, np.int32),
        )
        return step, reaching

    def _commit(self, advances: list[Advance], samples: list[Sample]) -> list[Delta]:
        self._scheduler.commit(advances)
        self._count(advances, len(samples))
        now = perf_counter()
        deltas = []
        reaching = (self._requests[a.id] for a in advances if a.reaches)
        for request, sample in zip(reaching, samples, strict=True):
            request.sampler.accept(sample.token)
            request.output.append(sample)
            request.first_token = now if request.first_token is None else request.first_token
            request.last_token = now
            text, request.finish_reason = request.ending.push(sample.token)
            deltas.append(Delta(request, sample, text, request.finish_reason))
        for delta in deltas:
            if delta.finish_reason is None:
                self._scheduler.extend(delta.request.id)
            else:
                del self._requests[delta.request.id]
                self._scheduler.remove(delta.request.id)
        return deltas

    def _count(self, advances: list[Advance], out_rows: int) -> None:
        tokens = sum(a.rows for a in advances)
        attended = sum(a.rows * (a.past + (a.rows + 1) // 2) for a in advances)
        self._sweeps += 1
        self._tokens += tokens
        self._last = Workload(tokens, out_rows, attended // tokens)

    def logprobs(self, tokens: Sequence[int], first: int) -> NDArray[np.float64]:
        """Log-probabilities of ``tokens[first + 1:]``, each given all tokens before it.

        Uses KV beside that of running requests; PoolError if too little is free.
        """
        self._check(tokens)
        self.limit(tokens[:-1], SamplingParams(max_tokens=1))
        table = self._pool.allocate(blocks_for(len(tokens) - 1))
        try:
            return score(self.runner, self._kv, table, tokens, first, self.token_budget)
        finally:
            self._pool.release(table)

    def check_integrity(self) -> None:
        """Raise PoolError unless every KV block is held by a running request or free."""
        self._scheduler.check_integrity()
