"""The engine: requests go in, each step advances some of them, tokens and text come out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Span, Step
from strata.decode import (
    NO_DRAFT,
    Draft,
    Proposer,
    Sample,
    Sampler,
    SamplingParams,
    StopChecker,
    TextStream,
)
from strata.engine.kv_settings import KVSettings, make_memory
from strata.engine.pooling import embed
from strata.engine.request import Delta, Request
from strata.engine.runner import Runner
from strata.engine.scheduler import Advance, Scheduler
from strata.engine.scoring import score
from strata.engine.status import EngineStatus
from strata.errors import StrataError, UsageError
from strata.models import Pooling
from strata.program import StepSize

_log = logging.getLogger("strata.engine")

TOKEN_BUDGET = 512
"""Tokens a step, by default: enough to use the weights well, few enough to keep others moving."""

QUEUE_LIMIT = 1024
"""Requests that may wait."""

LOAD_BYTES = 16 << 20
"""KV read from the disk between two steps that others wait for: some ten milliseconds."""

DRAFT_TOKENS = 8
"""Tokens that are guessed for a request in a step, where there is a proposer."""

NO_TOKEN = Sample(-1)
"""In place of a token where there is none."""


class EngineError(UsageError):
    """A request that this engine cannot serve."""


class ContextExceeded(EngineError):
    """A request that is too long for the context."""


class QueueFull(StrataError):
    """Too many requests wait already; try again later."""


class _Outcome(NamedTuple):
    """What came of an advance: the tokens chosen at its end, or why none could be."""

    advance: Advance
    request: Request
    samples: Sequence[Sample] = ()
    error: StrataError | None = None


class Engine:
    """Advances requests together, each independent of the others' presence.

    At most ``parallel`` requests run, of up to ``context`` positions each; ``kv`` says how much
    state is held for all of them together. Requests for which there is no room wait their turn.
    While some are being answered, the prompt of another is taken in pieces, as ``prefill_budget``
    says (see Scheduler); empty: pieces as large as the token budget allows. A ``proposer`` guesses
    up to ``draft_tokens`` of a request ahead, which changes no answer. One thread at a time may
    call.
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
        prefill_budget: Sequence[int] = (),
        proposer: Proposer | None = None,
        draft_tokens: int = DRAFT_TOKENS,
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
        self.parallel = parallel
        self.token_budget = token_budget
        self._stop_ids = stop_ids
        self._memory = make_memory(
            kv or KVSettings(),
            runner,
            context=context,
            parallel=parallel,
            step_rows=token_budget,
            token_s=lambda: runner.sweeps.token_s,
        )
        self.kv_type = self._memory.kv_type
        self._proposer = proposer
        sizes = [size for _, size in self._pool_sizes()]
        self._scheduler = Scheduler(
            self._memory.manager,
            parallel=parallel,
            token_budget=token_budget,
            prefill_budget=prefill_budget,
            draft_tokens=draft_tokens,
            load_blocks=max(1, LOAD_BYTES // max(1, sum(sizes))),
        )
        self._requests: dict[int, Request] = {}
        self._ids = count()
        self._sweeps = 0
        self._tokens = 0
        self._hits = 0
        self._misses = 0
        self._drafted = 0
        self._kept = 0
        self._last: StepSize | None = None

    @property
    def kv_bytes(self) -> int:
        """Bytes of state held."""
        return self._memory.state.nbytes

    def _pool_sizes(self) -> list[tuple[int, int]]:
        """Blocks of each group, and the bytes of one."""
        state, pools = self._memory.state, self._memory.manager.pools
        return [(pool.blocks, state.block_nbytes(group)) for group, pool in enumerate(pools)]

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
        manager, sizes = self._memory.manager, self._pool_sizes()
        unused, free = manager.unused(), [pool.free for pool in manager.pools]
        used = (blocks - n for (blocks, _), n in zip(sizes, unused, strict=True))
        return EngineStatus(
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            kv_blocks=sum(blocks for blocks, _ in sizes),
            kv_blocks_free=sum(unused),
            kv_bytes_used=sum(n * size for n, (_, size) in zip(used, sizes, strict=True)),
            sweeps=self._sweeps,
            tokens=self._tokens,
            last=self._last,
            kv_blocks_cached=sum(unused) - sum(free),
            prefix_hit_tokens=self._hits,
            prefix_miss_tokens=self._misses,
            draft_tokens=self._drafted,
            draft_tokens_kept=self._kept,
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
        if self.runner.model.embeds:
            raise EngineError("this model was loaded to embed texts, and continues none")
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
            request.sampler.close()
            self._scheduler.remove(request.id)

    def step(self) -> list[Delta]:
        """Advance some requests: plan, run, commit. Returns the tokens that were chosen, and for a
        request of which none could be its error; that one is over then, and no other.

        An exception or interrupt before the commit leaves every request as it was before the step;
        one within it cancels the requests of the step.
        """
        advances = self._scheduler.plan(None if self._proposer is None else self._propose)
        if not advances:
            return []
        outcomes = self._run(advances)
        try:
            return [delta for outcome in outcomes for delta in self._commit(outcome)]
        except BaseException:
            for outcome in outcomes:
                self.cancel(outcome.request)
            raise

    def _propose(self, id: int, tokens: Sequence[int], most: int) -> Draft:
        """Guesses for a request, no more than its answer may have beside the next token."""
        assert self._proposer is not None
        most = min(most, self._requests[id].stop_checker.left - 1)
        return self._proposer.propose(tokens, most) if most > 0 else NO_DRAFT

    def _run(self, advances: list[Advance]) -> list[_Outcome]:
        """What comes of the advances. Changes no request but for when it started."""
        now = perf_counter()
        step = _batch(advances)
        broken: list[Exception] = []
        rows = self._rows(step, broken)
        outcomes = []
        for advance in advances:
            request = self._requests[advance.id]
            wanted = islice(rows, advance.needs_logits)
            samples: list[Sample] = []
            error = None
            if advance.needs_logits:
                try:
                    samples = request.sampler.verify(wanted, advance.draft)
                except Exception as reason:
                    if broken:
                        raise
                    error = _as_error(reason)
                # Rows of a draft that nobody looked at, since its request failed.
                for _ in wanted if advance.draft.tokens else ():
                    pass
            outcomes.append(_Outcome(advance, request, samples, error))
        # The step has run when there is no row left.
        more = next(rows, None)
        assert more is None
        for outcome in outcomes:
            self._start(outcome.request, now, outcome.advance.cached)
        self._count(advances)
        return outcomes

    def _rows(self, step: Step, broken: list[Exception]) -> Iterator[NDArray[np.float32]]:
        """Rows of logits. What breaks the step off, and not only a request, is entered."""
        try:
            for logits in self.runner.run(step, self._memory.state):
                yield from logits
                del logits
        except Exception as error:
            broken.append(error)
            raise

    def _start(self, request: Request, now: float, cached: int) -> None:
        if request.started is None:
            request.started = now
            request.cached_tokens = cached
            self._hits += cached
            self._misses += len(request.prompt) - cached

    def _commit(self, outcome: _Outcome) -> list[Delta]:
        """Record an advance and its tokens, as far as its answer goes."""
        request, deltas = outcome.request, []
        now = perf_counter()
        for sample in outcome.samples:
            request.sampler.accept(sample.token)
            request.output.append(sample)
            request.first_token = now if request.first_token is None else request.first_token
            request.last_token = now
            text, request.finish_reason = request.stop_checker.push(sample.token)
            deltas.append(Delta(request, sample, text, request.finish_reason))
            if request.finish_reason is not None:
                break
        self._scheduler.commit(outcome.advance, [delta.sample.token for delta in deltas])
        self._drafted += len(outcome.advance.draft.tokens)
        self._kept += max(0, len(deltas) - 1)
        if outcome.error is not None:
            self.cancel(request)
            return [Delta(request, NO_TOKEN, "", None, outcome.error)]
        if request.finish_reason is not None:
            del self._requests[request.id]
            request.sampler.close()
            self._scheduler.remove(request.id, keep=True)
        return deltas

    def _count(self, advances: list[Advance]) -> None:
        logit_rows = tokens = attended = 0
        for a in advances:
            rows = a.rows
            tokens += rows
            logit_rows += a.needs_logits
            attended += rows * a.past + rows * (rows + 1) // 2
        self._sweeps += 1
        self._tokens += tokens
        self._last = StepSize(tokens, logit_rows, attended // tokens)

    def logprobs(self, tokens: Sequence[int], first: int) -> NDArray[np.float64]:
        """Log-probabilities of ``tokens[first + 1:]``, each given all tokens before it.

        Uses KV beside that of running requests; PoolError if too little is free.
        """
        self._check(tokens)
        self.limit(tokens[:-1], SamplingParams(max_tokens=1))
        return score(
            self.runner,
            self._memory.state,
            self._memory.manager,
            tokens,
            first,
            self.token_budget,
        )

    def check_lengths(self, texts: Sequence[Sequence[int]]) -> None:
        """ContextExceeded for a text that is longer than the context, EngineError for one without
        tokens or with unknown ones."""
        for number, text in enumerate(texts):
            self._check(text)
            if len(text) > self.context:
                raise ContextExceeded(
                    f"text {number + 1} has {len(text)} tokens and the context {self.context}: "
                    f"shorten it or raise the context"
                )

    def embed(
        self,
        texts: Sequence[Sequence[int]],
        pooling: Pooling,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings [texts, width], those of a text's tokens made one; see ``pooling.embed``.

        EngineError for a model that was not loaded for it, ContextExceeded for a text that is
        longer than the context.
        """
        if not self.runner.model.embeds:
            raise EngineError("this model was loaded to continue texts: embedding=True embeds them")
        self.check_lengths(texts)
        return embed(
            self.runner,
            self._memory.state,
            self._memory.manager,
            texts,
            pooling,
            token_budget=self.token_budget,
            parallel=self.parallel,
            progress=progress,
        )

    def forget_prefixes(self) -> None:
        """Forget what could be found again in memory: the next prompt is computed."""
        self._memory.manager.forget()

    def close(self) -> None:
        """Finish what is being written to the store of prefixes. The engine is of no use after."""
        self._memory.offload.close()

    def check_integrity(self) -> None:
        """Raise PoolError unless every KV block is free or held by those that should."""
        self._scheduler.check_integrity()


def _batch(advances: Sequence[Advance]) -> Step:
    """The step of all advances: for each a span of its tokens and of the first chain of its draft,
    and one for each further chain, which branches off another."""
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    logits_indices: list[int] = []

    def add(part: Sequence[int], past: int, tables: Sequence[Sequence[int]], parent: int) -> None:
        arrays = tuple(np.array(table, np.int32) for table in tables)
        spans.append(Span(len(tokens), len(part), past, arrays, parent))
        tokens.extend(part)
        positions.extend(range(past, past + len(part)))

    for a in advances:
        draft, root = a.draft, len(spans)
        first, *others = draft.chains() if draft.tokens else [()]
        add([*a.tokens, *(draft.tokens[n] for n in first)], a.past, a.tables, -1)
        if others:
            # Where each token of the draft lies: span and position.
            place = {n: (root, a.past + len(a.tokens) + i) for i, n in enumerate((-1, *first), -1)}
            for chain, tables in zip(others, a.branches, strict=True):
                parent, before = place[draft.parent(chain[0])]
                place |= {n: (len(spans), before + 1 + i) for i, n in enumerate(chain)}
                add([draft.tokens[n] for n in chain], before + 1, tables, parent)
        if a.needs_logits:
            logits_indices += range(len(tokens) - a.needs_logits, len(tokens))
    return Step(
        np.array(tokens, np.int32),
        np.array(positions, np.int32),
        tuple(spans),
        np.array(logits_indices, np.int32),
    )


def _as_error(reason: Exception) -> StrataError:
    if isinstance(reason, StrataError):
        return reason
    _log.error("a token could not be chosen", exc_info=reason)
    return StrataError(f"a token could not be chosen: {type(reason).__name__}: {reason}")
