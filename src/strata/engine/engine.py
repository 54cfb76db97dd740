"""The engine: requests go in, each step advances some of them, tokens and text come out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import Span, Step
from strata.backends.settings import BackendSettings
from strata.decode import (
    Draft,
    Sample,
    Sampler,
    SamplingParams,
    StopChecker,
    TextStream,
)
from strata.engine.drafting import Drafting, DraftTotals
from strata.engine.kv_settings import KVSettings, SequenceMemory, make_memory
from strata.engine.prompt_slices import PromptSlices
from strata.engine.request import Delta, Request
from strata.engine.runner import Border, Runner
from strata.engine.scheduler import Advance, Scheduler
from strata.engine.status import EngineStatus
from strata.errors import StrataError, UsageError
from strata.models import Pooling
from strata.program import StepSize

if TYPE_CHECKING:
    from strata.engine.beam_search import BeamParams, BeamSearch
    from strata.engine.scoring import Rows
    from strata.kv.store import PrefixStore

_log = logging.getLogger("strata.engine")

TOKEN_BUDGET = 512
"""Tokens a step, by default: enough to use the weights well, few enough to keep others moving."""

QUEUE_LIMIT = 1024
"""Requests that may wait."""

LOAD_BYTES = 16 << 20
"""KV read from the disk between two steps that others wait for: some ten milliseconds."""

NO_TOKEN = Sample(-1)
"""In place of a token where there is none."""


class EngineError(UsageError):
    """A request that this engine cannot serve."""


class ContextExceeded(EngineError):
    """A request that is too long for the context: it has ``tokens``, or more where it was given up
    before they were counted, and the context ``most``."""

    def __init__(self, message: str, tokens: int = 0, most: int = 0) -> None:
        super().__init__(message)
        self.tokens = tokens
        self.most = most


class QueueFull(StrataError):
    """Too many requests wait already; try again later."""


class _Outcome(NamedTuple):
    """What came of an advance: the tokens chosen at its end, or why none could be. ``late``:
    nothing did, since it is not known yet what a grammar allows."""

    advance: Advance
    request: Request
    samples: Sequence[Sample] = ()
    error: StrataError | None = None
    late: bool = False


class Engine:
    """Advances requests together, each independent of the others' presence.

    At most ``parallel`` requests run, of up to ``context`` positions each; ``kv`` says how much
    state is held for all of them together. Requests for which there is no room wait their turn.
    While some are being answered, the prompt of another is taken in pieces, as ``prefill_budget``
    and ``slowdown`` say (see PromptSlices); empty: pieces as large as the token budget allows.
    ``drafting`` has tokens
    guessed ahead, which changes no answer. One thread at a time may call.
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
        slowdown: float | None = None,
        drafting: Drafting | None = None,
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
        self._kv = kv or KVSettings()
        self._memory = self._make_memory()
        self.kv_type = self._memory.kv_type
        self.drafting = drafting
        self._slices = PromptSlices(prefill_budget, slowdown)
        self._scheduler = Scheduler(
            self._memory.manager,
            parallel=parallel,
            token_budget=token_budget,
            slices=self._slices,
            load_blocks=self._load_blocks,
        )
        self._requests: dict[int, Request] = {}
        self._ids = count()
        self._sweeps = 0
        self._tokens = 0
        self._hits = 0
        self._misses = 0
        self._last: StepSize | None = None
        self._seen: NDArray[np.float32] | None = None
        self._asked = 0.0
        self._searches: WeakSet[BeamSearch] = WeakSet()
        self.held_up = False
        """Whether the last step could do nothing, since searches hold the KV that requests need:
        so it stays until a search goes on."""

    def _make_memory(self) -> SequenceMemory:
        return make_memory(
            self._kv,
            self.runner,
            context=self.context,
            parallel=self.parallel,
            step_rows=self.token_budget,
            token_s=lambda: self.runner.sweeps.token_s,
        )

    @property
    def _load_blocks(self) -> int:
        return max(1, LOAD_BYTES // max(1, sum(size for _, size in self._pool_sizes())))

    def rearrange(
        self,
        settings: BackendSettings,
        before: BackendSettings,
        blocks: tuple[int, ...] | None = None,
        prefill_budget: Sequence[int] = (),
    ) -> None:
        """Go on by other settings of the backend, with so many blocks of each group of state (None:
        as many as there are). What fails leaves everything as it was ``before``.

        Where sizes of state change everybody who runs gives way, and is resumed with the same bits.
        """
        blocks = blocks or self._blocks
        old = self._kv, self.token_budget
        new = replace(self._kv, blocks=blocks), settings.max_tokens
        moves = (blocks, settings.max_tokens) != (self._blocks, self.token_budget)
        moves = moves or settings.kv_slots != before.kv_slots
        if moves:
            self._scheduler.stop_all()
            self._memory.manager.forget()
            self._memory.offload.close()
            # Its memory goes now: what comes is made in its place.
            self.runner.backend.give_back(self._memory.state)
        try:
            self.runner.rearrange(settings, before)
            self._kv, self.token_budget = new
            try:
                self._memory = self._make_memory() if moves else self._memory
            except BaseException:
                self.runner.rearrange(before, before)
                raise
        except BaseException:
            self._kv, self.token_budget = old
            if moves:
                self._memory = self._make_memory()
            raise
        finally:
            self._slices.planned = tuple(prefill_budget)
            self._scheduler.go_on_with(self._memory.manager, self.token_budget, self._load_blocks)

    @property
    def _blocks(self) -> tuple[int, ...]:
        return tuple(pool.blocks for pool in self._memory.manager.pools)

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
    def idle(self) -> bool:
        """Whether no request waits or runs and no search holds KV."""
        return not self._requests and not any(search.holds_kv for search in self._searches)

    @property
    def queue_full(self) -> bool:
        """Whether ``submit`` would raise QueueFull."""
        return self._scheduler.waiting >= QUEUE_LIMIT

    def status(self) -> EngineStatus:
        """What is held and was done, as of now."""
        manager, sizes = self._memory.manager, self._pool_sizes()
        unused, free = manager.unused(), [pool.free for pool in manager.pools]
        drafts = DraftTotals() if self.drafting is None else self.drafting.totals
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
            drafts=drafts.drafts,
            draft_tokens=drafts.drafted,
            draft_tokens_kept=drafts.kept,
            draft_saved_s=drafts.saved_s,
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
                f"{self.context}; shorten it or raise the context",
                len(prompt),
                self.context,
            )
        limit = room if params.max_tokens is None else params.max_tokens
        if limit > room:
            raise ContextExceeded(
                f"a prompt of {len(prompt)} tokens and {limit} more do not fit a context of "
                f"{self.context}; ask for at most {room} tokens or raise the context",
                len(prompt) + limit,
                self.context,
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
            sampler=Sampler(params, prompt, self.runner.model.vocab_size, self._stop_ids),
            stop_checker=StopChecker(params, self._stop_ids, limit, text),
            submitted=perf_counter(),
        )
        self._requests[request.id] = request
        self._scheduler.add(request.id, prompt)
        if self.drafting is not None:
            self.drafting.begin(request.id, request.sampler)
        return request

    def cancel(self, request: Request) -> None:
        """End a request now and free what it holds; one that is done stays as it is."""
        if self._requests.pop(request.id, None) is not None:
            request.cancelled = True
            request.sampler.close()
            self._scheduler.remove(request.id)
            self._forget(request)

    def _forget(self, request: Request) -> None:
        if self.drafting is not None:
            tokens = [*request.prompt, *(sample.token for sample in request.output)]
            self.drafting.end(request.id, tokens)

    def step(self) -> list[Delta]:
        """Advance some requests: plan, run, commit. Returns the tokens that were chosen, and for a
        request of which none could be its error; that one is over then, and no other. Who has no
        grammar never waits for what those of others allow: their requests sit steps out.

        An exception or interrupt before the commit leaves every request as it was before the step;
        one within it cancels the requests of the step.
        """
        self._asked = 0.0
        propose = None if self.drafting is None else self._propose
        advances = self._scheduler.plan(propose, self._late_grammars())
        # Without any sequence that runs, all blocks are free but those of searches.
        self.held_up = not advances and bool(self._requests) and not self._scheduler.running
        if not advances:
            return []
        # What a draft takes to be planned is a part of its step.
        began = self._asked or perf_counter()
        outcomes = self._run(advances)
        try:
            deltas = [self._commit(outcome) for outcome in outcomes]
            self._learn(advances, perf_counter() - began)
            if self.drafting is not None:
                chosen = {o.advance.id: [s.token for s in o.samples] for o in outcomes}
                self.drafting.learn(advances, chosen, perf_counter() - began, self._seen)
        except BaseException:
            for outcome in outcomes:
                self.cancel(outcome.request)
            raise
        return [delta for each in deltas for delta in each]

    def _late_grammars(self) -> frozenset[int]:
        """Requests that obey grammars and are not to hold up those that obey none: what they may
        choose is not known yet, and they have begun late before, or not begun."""
        obeying = [r for r in self._requests.values() if r.sampler.params.grammar is not None]
        if not obeying or len(obeying) == len(self._requests):
            return frozenset()
        waiting = (r for r in obeying if (r.late or not r.output) and not r.sampler.ready())
        return frozenset(r.id for r in waiting)

    def _learn(self, advances: Sequence[Advance], seconds: float) -> None:
        """Take into account what a step of prompts beside answers took."""
        prompts = [a for a in advances if not a.needs_logits or len(a.tokens) > 1 + a.redone]
        rows, depth = sum(a.rows for a in prompts), max((a.past for a in prompts), default=0)
        self._slices.measured(sum(a.rows for a in advances) - rows, rows, depth, seconds)

    def _propose(
        self, tokens: Mapping[int, Sequence[int]], rows: int, room: int
    ) -> Mapping[int, Draft]:
        """Guesses for requests, no more than an answer may have beside the next token."""
        assert self.drafting is not None
        limits = {id: self._requests[id].stop_checker.left - 1 for id in tokens}
        if any(self._requests[id].sampler.params.grammar is None for id in tokens):
            # A grammar says what it forces with what it allows next.
            tokens = {id: t for id, t in tokens.items() if self._requests[id].sampler.ready()}
            if not tokens:
                return {}
        drafts = self.drafting.propose(tokens, rows, room, limits)
        self._asked = perf_counter() if drafts else 0.0
        return drafts

    def _run(self, advances: list[Advance]) -> list[_Outcome]:
        """What comes of the advances. Changes no request but for when it started."""
        now = perf_counter()
        step = _batch(advances)
        requests = [self._requests[advance.id] for advance in advances]
        patient = all(request.sampler.params.grammar is not None for request in requests)
        broken: list[Exception] = []
        rows = self._rows(step, broken)
        outcomes = []
        for advance, request in zip(advances, requests, strict=True):
            wanted = islice(rows, advance.needs_logits)
            samples: list[Sample] = []
            error = None
            late = bool(advance.needs_logits) and not (patient or request.sampler.ready())
            if late:
                for _ in wanted:
                    pass
            elif advance.needs_logits:
                try:
                    samples = request.sampler.verify(wanted, advance.draft, patient=patient)
                except Exception as reason:
                    if broken:
                        raise
                    error = _as_error(reason)
                # Rows of a draft that nobody looked at, since its request failed.
                for _ in wanted if advance.draft.tokens else ():
                    pass
            outcomes.append(_Outcome(advance, request, samples, error, late))
        # The step has run when there is no row left.
        more = next(rows, None)
        assert more is None
        for outcome in outcomes:
            self._start(outcome.request, now, outcome.advance.cached)
        self._count(advances)
        return outcomes

    def _rows(self, step: Step, broken: list[Exception]) -> Iterator[NDArray[np.float32]]:
        """Rows of logits. What breaks the step off, and not only a request, is entered."""
        drafting = self.drafting
        shown = () if drafting is None else drafting.sees
        seen = self._see if shown else None
        try:
            for logits in self.runner.run(step, self._memory.state, seen=seen, seen_of=shown):
                yield from logits
                del logits
        except Exception as error:
            broken.append(error)
            raise

    def _see(self, rows: NDArray[np.float32]) -> None:
        self._seen = rows

    def _start(self, request: Request, now: float, cached: int) -> None:
        if request.started is None:
            request.started = now
            request.cached_tokens = cached
            self._hits += cached
            self._misses += len(request.prompt) - cached

    def _commit(self, outcome: _Outcome) -> list[Delta]:
        """Record an advance and its tokens, as far as its answer goes."""
        request, deltas = outcome.request, []
        request.late = outcome.late
        if outcome.late:
            # It is as if it had not been advanced: that is done again.
            self._tokens -= outcome.advance.rows
            self.runner.sweeps.lost(outcome.advance.rows)
            return []
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
        lost = outcome.advance.redone + len(outcome.advance.draft.tokens) - max(0, len(deltas) - 1)
        self._tokens -= lost
        self.runner.sweeps.lost(lost)
        if outcome.error is not None:
            self.cancel(request)
            return [Delta(request, NO_TOKEN, "", None, outcome.error)]
        if request.finish_reason is not None:
            del self._requests[request.id]
            request.sampler.close()
            self._scheduler.remove(request.id, keep=True)
            self._forget(request)
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
        from strata.engine.scoring import score

        return score(
            self.runner,
            self._memory.state,
            self._memory.manager,
            tokens,
            first,
            self.token_budget,
        )

    def visit_logits(
        self, tokens: Sequence[int], first: int, rows: Rows, border: Border | None = None
    ) -> None:
        """Give the logits that predict ``tokens[first + 1:]`` to ``rows``, a few rows at a time,
        and what each Segment gives to ``border``. Uses KV as ``logprobs`` does."""
        self._check(tokens)
        self.limit(tokens[:-1], SamplingParams(max_tokens=1))
        from strata.engine.scoring import visit

        memory, budget = self._memory, self.token_budget
        visit(self.runner, memory.state, memory.manager, tokens, first, budget, rows, border)

    def beam_search(self, prompt: Sequence[int], params: BeamParams) -> BeamSearch:
        """A search of which ``advance`` takes a step. EngineError if it can never be served."""
        self.limit(prompt, SamplingParams(max_tokens=params.max_tokens))
        if params.width > self.token_budget:
            raise EngineError(
                f"{params.width} beams do not fit a step of {self.token_budget} tokens"
            )
        from strata.engine.beam_search import BeamSearch

        search = BeamSearch(prompt, params, self._stop_ids)
        self._searches.add(search)
        return search

    def advance(self, search: BeamSearch) -> None:
        """A step of a search, in KV beside that of running requests; PoolError if too little is
        free."""
        search.step(self.runner, self._memory, self.token_budget)

    def check_lengths(self, texts: Sequence[Sequence[int]]) -> None:
        """ContextExceeded for a text that is longer than the context, EngineError for one without
        tokens or with unknown ones."""
        for number, text in enumerate(texts):
            self._check(text)
            if len(text) > self.context:
                raise ContextExceeded(
                    f"text {number + 1} has {len(text)} tokens and the context {self.context}: "
                    f"shorten it or raise the context",
                    len(text),
                    self.context,
                )

    def embed(
        self,
        texts: Sequence[Sequence[int]],
        pooling: Pooling,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings [texts, width], those of a text's tokens made one; see ``pooling.embed``.

        A model that continues texts gives what its head would multiply. ContextExceeded for a text
        that is longer than the context.
        """
        self.check_lengths(texts)
        from strata.engine.pooling import embed

        return embed(
            self.runner.embedding(),
            self._memory.state,
            self._memory.manager,
            texts,
            pooling,
            token_budget=self.token_budget,
            parallel=self.parallel,
            progress=progress,
        )

    def known(self, tokens: Sequence[int]) -> tuple[int, int]:
        """How many tokens of a prompt, from the first, would not be computed again: those in
        memory, and those there or in the store. To be asked between two steps."""
        return self._memory.manager.known(tokens)

    @property
    def kv_stores(self) -> tuple[PrefixStore, ...]:
        """Where KV is kept on disk, one for each group of layers; none without a store."""
        return self._memory.offload.stores

    def forget_prefixes(self) -> None:
        """Forget what could be found again in memory: the next prompt is computed."""
        self._memory.manager.forget()

    def close(self) -> None:
        """Finish what is being written to the store of prefixes. The engine is of no use after."""
        self._memory.offload.close()
        if self.drafting is not None:
            self.drafting.close()

    def check_integrity(self) -> None:
        """Raise PoolError unless every KV block is free or held by those that should."""
        self._scheduler.check_integrity()
        if self.drafting is not None and self.drafting.model is not None:
            self.drafting.model.check_integrity()


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
