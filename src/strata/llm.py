"""The class that users meet: a model, ready to answer. It wires the rooms and holds no logic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from strata.decode import FinishReason, Sample, SamplingParams
from strata.engine import (
    Delta,
    Driver,
    Engine,
    Job,
    LoadProgress,
    Timings,
)
from strata.engine.loading import load
from strata.engine.runtime import LoadOptions
from strata.engine.texts import TextWorkload, chat_ids, encoded, pair_ids, prompt_ids
from strata.errors import UsageError
from strata.hub.references import resolve
from strata.models import Pooling, read_pooling
from strata.report import Measurement, Perplexity, measure, perplexity
from strata.sizes import parse_size

if TYPE_CHECKING:
    from strata.memory import Ledger
    from strata.plan import Plan, Workload
    from strata.report.explain import Explanation

DEFAULT_STORE_BYTES = 4 << 30
"""The most that a store of prefixes takes on disk unless asked otherwise."""

Prompt = str | list[int]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """A whole answer. ``token_ids`` includes an end token, ``text`` does not.

    ``logprobs`` has one Sample a token if they were asked for. ``seed`` is the one that was
    used, None for a greedy answer. ``cached_tokens`` of the prompt were known and not computed.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Sample, ...] | None
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int | None
    timings: Timings
    cached_tokens: int = 0


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: one token of prompt number ``index``, and the text certain with it.

    ``logprob`` and ``top`` are as in ``strata.decode.Sample``. The last chunk of an answer has its
    ``finish_reason``, and the whole of it as ``output``.
    """

    index: int
    text: str
    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None
    output: Output | None


class LLM:
    """A model with its weights loaded and KV for ``parallel`` sequences of ``context`` positions.

    ``model`` is a reference: a built-in name, a .gguf file, a Hugging Face directory, or a
    repository, which is downloaded unless it is here; a Path is taken as it is. ``backend`` is
    ``cpu`` (native kernels) or ``reference`` (numpy in float32, slow). ``threads`` is for the cpu
    backend (None: one a core). ``context`` None is 4096 or the model's own if that is less, because
    KV memory grows with it. ``progress`` is told of downloads and loading. Threads may share it,
    also beside a server: each call has the engine's steps that it needs, and the bits it would have
    alone.

    ``memory`` is a budget in bytes (or text such as ``"4GB"``) for the whole process and the page
    cache it causes: weights that have no room are streamed from the file in every sweep, and
    BudgetTooSmall is raised before loading if even that does not fit. Without it the budget is what
    the machine leaves. A Plan is made for ``workload`` (whose context and concurrency are those
    given here; or what makes it of a text), in any case if ``planned``, else where memory is short.
    ``plan`` is executed instead of one made here, as it stands: its budget is held, and its
    context, threads and all else it has count and not those given here.

    ``kv_type`` is how keys and values are kept: ``f16``, ``bf16`` or ``q8_0``. ``kv_bytes`` bounds
    the KV of all requests together, which then wait for each other or give way. The KV of earlier
    prompts is kept in memory while there is room, so that a common beginning is computed once;
    ``kv_store``, a directory of its own of at most ``kv_store_bytes``, keeps it for later processes
    too; what others have made is never touched, and refused.

    ``slowdown`` bounds how much longer a step may take because a prompt comes in beside answers
    that somebody reads; None, for batches that nobody watches, has the most tokens a second.
    ``serving`` sets memory aside for a server in this process. ``embedding``: the model is for
    ``embed``, which takes no head, and continues no text.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str = "cpu",
        threads: int | None = None,
        context: int | None = None,
        parallel: int = 1,
        memory: int | str | None = None,
        workload: Workload | TextWorkload | None = None,
        planned: bool = False,
        plan: Plan | None = None,
        kv_type: str | None = None,
        kv_bytes: int | str | None = None,
        kv_store: str | Path | None = None,
        kv_store_bytes: int | str = DEFAULT_STORE_BYTES,
        slowdown: float | None = None,
        serving: bool = False,
        embedding: bool = False,
        progress: LoadProgress | None = None,
    ) -> None:
        self.path = model if isinstance(model, Path) else resolve(model, progress=progress)
        started = perf_counter()
        loaded = load(
            self.path,
            LoadOptions(
                memory=None if memory is None else _size(memory),
                threads=threads,
                context=context,
                parallel=parallel,
                workload=workload,
                planned=planned,
                kv_type=kv_type,
                kv_bytes=None if kv_bytes is None else _size(kv_bytes),
                serving=serving,
                embedding=embedding,
                backend=backend,
                kv_store=None if kv_store is None else Path(kv_store).expanduser(),
                kv_store_bytes=_size(kv_store_bytes),
                slowdown=slowdown,
            ),
            plan,
            progress,
        )
        self.backend = backend
        self._file = loaded.file
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.runtime = loaded.runtime
        self.wanted_context = loaded.wanted_context
        self.driver = Driver(loaded.engine)
        self.load_s = perf_counter() - started

    @property
    def engine(self) -> Engine:
        """The engine that runs requests; UsageError once this LLM is closed."""
        return self.driver.engine

    @property
    def plan(self) -> Plan | None:
        """By what the model is run; None where everything is resident without one."""
        return self.runtime.plan

    @property
    def ledger(self) -> Ledger:
        """Who owns how many bytes."""
        return self.runtime.ledger

    @property
    def threads(self) -> int | None:
        """Threads that compute, for backends that have them."""
        return self.runtime.threads

    @property
    def isa(self) -> str:
        """What computes: for the cpu backend the instruction set whose kernels run."""
        return self.runtime.device

    def explain(self) -> Explanation:
        """What happened so far, against the plan if there is one."""
        from strata.report.explain import explain

        return explain(self.runtime, self.engine.runner)

    @property
    def context(self) -> int:
        """Positions that a prompt and its answer share; fewer than ``wanted_context`` where memory
        is short and none was asked for."""
        return self.engine.context

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of ``text``; see ``Tokenizer.encode``."""
        return encoded(
            self.tokenizer, text, self.ledger, add_special=add_special, parse_special=parse_special
        ).tolist()

    @overload
    def generate(
        self,
        prompts: Prompt,
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        continuing: bool = True,
    ) -> Output: ...
    @overload
    def generate(
        self,
        prompts: list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        continuing: bool = True,
    ) -> list[Output]: ...
    @overload
    def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        continuing: bool = True,
    ) -> Iterator[Chunk]: ...

    def generate(
        self,
        prompts: Prompt | list[str] | list[list[int]],
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        continuing: bool = True,
    ) -> Output | list[Output] | Iterator[Chunk]:
        """Continue one prompt or a list of them, each text or token ids.

        Text gets the tokens that the model wants at a beginning, and names of special tokens in it
        become these tokens; ids are taken as they are. ``continuing`` False: the answer begins a
        text of its own, as in a conversation. One prompt gives one Output, a list gives a list in
        its order; with ``stream`` Chunks come as tokens do, those of all prompts mixed.
        Everything is checked before the first token: UsageError for what cannot be served.
        """
        one = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        batch: Sequence[Any] = [prompts] if one else prompts
        ids = [
            prompt_ids(self.tokenizer, p, self.ledger) if isinstance(p, str) else p for p in batch
        ]
        run = self._start(ids, params or SamplingParams(), continuing=continuing)
        if stream:
            return run
        outputs = _whole(run, len(ids))
        return outputs[0] if one else outputs

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[False] = False,
    ) -> Output: ...
    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: Literal[True],
    ) -> Iterator[Chunk]: ...

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stream: bool = False,
    ) -> Output | Iterator[Chunk]:
        """Answer a conversation of ``{"role": ..., "content": ...}`` with the model's template.

        ChatTemplateError if the model has none. ``stream`` as in ``generate``.
        """
        ids = chat_ids(self.tokenizer, messages, self.ledger, tools)
        run = self._start([ids], params or SamplingParams(), continuing=False)
        return run if stream else _whole(run, 1)[0]

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        context: int = 512,
        chunks: int | None = None,
        progress: Callable[[Perplexity, int], None] | None = None,
    ) -> Perplexity:
        """How well the model predicts ``text``, or its ids; see ``strata.report.perplexity``.

        ``context`` may not exceed that of this LLM; UsageError if the text is too short.
        """
        tokenizer = self.tokenizer
        ids = text
        if isinstance(ids, str):
            ids = encoded(tokenizer, ids, self.ledger, add_special=True)
        with self.driver.alone() as engine:
            return perplexity(
                engine,
                ids,
                context=context,
                chunks=chunks,
                bos=tokenizer.bos_id if tokenizer.add_bos else None,
                progress=progress,
            )

    def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings of texts, or of token ids: [texts, width], or [width] of one text.

        ``pooling`` is what the file says (``mean`` where it says nothing): the mean of what the
        model gives for each token, or what it gives for the ``first`` or the ``last``. The first
        ``dimensions`` of them are taken, for models that were trained so, and made 1 long unless
        ``normalize`` is False. UsageError for an LLM without ``embedding``, for texts longer than
        the context, and for more dimensions than there are.
        """
        one = isinstance(texts, str)
        batch: Sequence[Any] = [texts] if one else texts
        ids = [
            encoded(self.tokenizer, t, self.ledger, add_special=True) if isinstance(t, str) else t
            for t in batch
        ]
        if self.model.ranks:
            raise UsageError("this model scores pairs of texts (`strata rank`) and embeds none")
        width = self.model.row_width
        if dimensions is not None and not 1 <= dimensions <= width:
            raise UsageError(f"{dimensions} dimensions are asked for; embeddings have {width}")
        how = pooling or read_pooling(self._file) or "mean"
        with self.driver.alone() as engine:
            found = engine.embed(ids, how, progress)[:, :dimensions]
        if normalize:
            lengths = np.sqrt((found.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
            found = (found / np.maximum(lengths, 1e-12)).astype(np.float32)
        return found[0] if one else found

    def rank(
        self,
        query: str,
        texts: Sequence[str] | Sequence[Sequence[int]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """How well each text answers the query, [texts]: scores as the model gives them, higher is
        better. ``texts`` may be token ids, of whole pairs. For models that rank, loaded with
        ``embedding``; UsageError for others."""
        if not self.model.ranks:
            raise UsageError("this model does not rank: compare the embeddings that it gives")
        pairs = [
            pair_ids(self.tokenizer, t, self.ledger, query=query) if isinstance(t, str) else t
            for t in texts
        ]
        with self.driver.alone() as engine:
            return engine.embed(pairs, "first", progress)[:, 0]

    def measure(
        self,
        *,
        prompt: int = 512,
        gen: int = 128,
        depth: int = 0,
        repeat: int = 3,
        progress: Callable[[int, int], None] | None = None,
    ) -> Measurement:
        """Speed on synthetic tokens; see ``strata.report.measure``."""
        with self.driver.alone(idle=True) as engine:
            return measure(
                engine, prompt=prompt, gen=gen, depth=depth, repeat=repeat, progress=progress
            )

    def close(self) -> None:
        """Free weights and KV; the object cannot be used afterwards. Safe to call twice.

        What is being written to the store of prefixes is written first.
        """
        self.driver.close()
        self.runtime.close()
        self._file.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, continuing: bool
    ) -> Iterator[Chunk]:
        """Check everything now, run when iterated."""
        for prompt in prompts:
            # Before it is made a list, which takes nine times as much.
            self.engine.limit(prompt, params)
        jobs = [Job(list(p), params, self.tokenizer.stream(continuing=continuing)) for p in prompts]
        self.driver.check(jobs)
        return self._run(jobs)

    def _run(self, jobs: Sequence[Job]) -> Iterator[Chunk]:
        answers = [_Answer(index) for index in range(len(jobs))]
        with self.driver.submit(jobs) as run:
            for index, delta in run:
                yield answers[index].add(delta)


class _Answer:
    """Puts the deltas of one request together."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._texts: list[str] = []

    def add(self, delta: Delta) -> Chunk:
        self._texts.append(delta.text)
        sample, request = delta.sample, delta.request
        output = None
        if delta.finish_reason is not None:
            params = request.sampler.params
            output = Output(
                text="".join(self._texts),
                token_ids=tuple(sample.token for sample in request.output),
                logprobs=tuple(request.output) if params.logprobs is not None else None,
                finish_reason=delta.finish_reason,
                prompt_tokens=len(request.prompt),
                cached_tokens=request.cached_tokens,
                seed=request.sampler.seed if params.temperature else None,
                timings=request.timings,
            )
        return Chunk(
            self._index,
            delta.text,
            sample.token,
            sample.logprob,
            sample.top,
            delta.finish_reason,
            output,
        )


def _size(size: int | str) -> int:
    return parse_size(size) if isinstance(size, str) else size


def _whole(run: Iterator[Chunk], count: int) -> list[Output]:
    outputs = {chunk.index: chunk.output for chunk in run if chunk.output is not None}
    return [outputs[index] for index in range(count)]
