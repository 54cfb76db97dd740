"""The class that users meet: a model, ready to answer. It wires the rooms and holds no logic."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Event
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from strata import asking
from strata.answers import Answer, BeamOutput, Chunk, Output, whole
from strata.backends.settings import ACTIVATIONS, ActivationsName
from strata.decode import SamplingParams
from strata.decode.constraint import Grammar
from strata.decode.defaults import sampling_defaults
from strata.engine import Driver, Engine, Job, LoadProgress
from strata.engine.draft_choice import OwnPart, own_part
from strata.engine.loading import load
from strata.engine.plan_check import PlanCheck
from strata.engine.runtime import LoadOptions
from strata.engine.texts import TextWorkload, chat_ids, encoded, pair_ids, prompt_ids
from strata.errors import UsageError
from strata.models import Pooling, embedding_model, read_pooling
from strata.models.kv_window import KVWindow
from strata.sizes import parse_size

if TYPE_CHECKING:
    from strata.decode.grammar import GrammarCompiler
    from strata.engine.kv_quality import KVChoice
    from strata.memory import Ledger
    from strata.plan import Plan, Workload
    from strata.report import Measurement, Perplexity
    from strata.report.explain import Explanation

DEFAULT_STORE_BYTES = 4 << 30
"""The most that a store of prefixes takes on disk unless asked otherwise."""

Params = SamplingParams | Mapping[str, Any]
Message = Mapping[str, Any]


class LLM:
    """A model with its weights loaded and KV for ``parallel`` sequences of ``context`` positions
    (None: up to 8, as there is room beside weights that surely fit, so that lists run together;
    else 1).

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

    ``kv_type`` is how keys and values are kept: ``f16``, ``bf16``, ``q8_0`` or ``int4``; apart,
    ``q8_0:int4``; and layers of their own, ``q8_0:int4,0-1=f16``. ``quality`` chooses it:
    ``exact``, or the fastest that is known to lose no more than ``0.1%`` or ``1%``.
    ``kv_bytes`` bounds the KV of all requests together, which then wait for each other or give way.
    ``kv_window`` has layers see the last so many positions and the first 4 (``"1024:16"``: 16) in
    place of all, as StreamingLLM does: texts go on without end in the same memory, and what lies
    between is forgotten. ``context`` may then be longer than the model was trained for. With
    ``kv_read`` all is kept and layers see blocks of so many positions, chosen by their keys.
    The KV of earlier prompts is kept in memory while there is room, so that a common beginning is
    computed once;
    ``kv_store``, a directory of its own of at most ``kv_store_bytes``, keeps it for later processes
    too; what others have made is never touched, and refused. KV that has no room in memory is in a
    nameless file in ``kv_disk``, with the same answers: None is Strata's own folder, used where a
    context fits no other way; a directory is used where that is faster, too; False forbids it.

    ``activations`` is how products with quantised weights take their input: ``int8``, or ``int16``,
    which is closer to floats and slower over prompts.

    ``slowdown`` bounds how much longer a step may take because a prompt comes in beside answers
    that somebody reads; None, for batches that nobody watches, has the most tokens a second.
    ``draft`` says how tokens are guessed ahead, of which a step decides several: ``ngram`` looks
    them up in the prompt and the answer, ``suffix`` in earlier ones, too; ``off``. ``auto`` is what
    is best here. Only as much is guessed as is worth its time, and no answer changes by it.
    ``experts_ahead``: of the slots for experts at most so many are for those that are read before a
    router has chosen them, while the disk is idle; no answer changes by it.
    ``draft_model``, a smaller model with the same vocabulary, ``self:N`` for the first N layers of
    the model itself, ``self:mtp`` for the block of its file that predicts further tokens, or a
    directory of EAGLE or Medusa heads, guesses what is not found in texts; all of it stays in
    memory.
    ``serving`` sets memory aside for a server in this process. ``embedding``: the model is for
    ``embed``, which takes no head, and continues no text. ``chat_template`` (Jinja) is used instead
    of the model's own.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str = "cpu",
        threads: int | None = None,
        context: int | None = None,
        parallel: int | None = None,
        memory: int | str | None = None,
        workload: Workload | TextWorkload | None = None,
        planned: bool = False,
        plan: Plan | None = None,
        kv_type: str | None = None,
        quality: str | None = None,
        kv_bytes: int | str | None = None,
        kv_window: int | str | None = None,
        kv_read: int = 0,
        kv_store: str | Path | None = None,
        kv_store_bytes: int | str = DEFAULT_STORE_BYTES,
        kv_disk: str | Path | Literal[False] | None = None,
        slowdown: float | None = None,
        draft: str = "auto",
        experts_ahead: int = 0,
        activations: ActivationsName = "int8",
        draft_model: str | Path | None = None,
        serving: bool = False,
        embedding: bool = False,
        chat_template: str | None = None,
        progress: LoadProgress | None = None,
    ) -> None:
        asking.typed("model", model, str, Path)
        for name, value in (("threads", threads), ("context", context), ("parallel", parallel)):
            asking.typed(name, value, int, optional=True)
        for name, size in (("memory", memory), ("kv_bytes", kv_bytes)):
            asking.typed(name, size, int, str, optional=True)
        asking.typed("kv_window", kv_window, int, str, optional=True)
        if plan is not None:
            from strata.plan import Plan

            asking.typed("plan", plan, Plan)
        asking.typed("kv_read", kv_read, int)
        asking.typed("experts_ahead", experts_ahead, int)
        if experts_ahead < 0:
            raise UsageError(f"experts_ahead must be at least 0, not {experts_ahead}")
        asking.typed("quality", quality, str, optional=True)
        if activations not in ACTIVATIONS:
            raise UsageError(f"activations are {' or '.join(ACTIVATIONS)}, not {activations!r}")
        if quality is not None and kv_type is not None:
            raise UsageError("quality chooses the KV type: give one of the two")
        choices: tuple[KVChoice, ...] = ()
        if quality is not None:
            from strata.report.quality.known import kv_choices

            choices = kv_choices(quality)
        if parallel is not None and parallel < 1:
            raise UsageError(f"parallel must be at least 1, not {parallel}")
        self.path = model if isinstance(model, Path) else _resolved(model, progress)
        started = perf_counter()
        loaded = load(
            self.path,
            LoadOptions(
                memory=None if memory is None else _size(memory),
                threads=threads,
                context=context,
                parallel=parallel or 1,
                together=parallel is None,
                workload=workload,
                planned=planned,
                kv_type=kv_type,
                kv_choices=choices,
                quality=quality or "",
                kv_bytes=None if kv_bytes is None else _size(kv_bytes),
                kv_window=None if kv_window is None else KVWindow.parse(str(kv_window)),
                kv_read=kv_read,
                serving=serving,
                embedding=embedding,
                backend=backend,
                kv_store=None if kv_store is None else Path(kv_store).expanduser(),
                kv_store_bytes=_size(kv_store_bytes),
                slowdown=slowdown,
                chat_template=chat_template,
                kv_disk=_directory(kv_disk),
                draft="off" if embedding else draft,
                experts_ahead=experts_ahead,
                activations=activations,
                draft_model=_draft_model(draft_model, progress),
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
        self.sampling_defaults = sampling_defaults(loaded.file)
        self.driver = Driver(loaded.engine)
        self._check = None
        if loaded.runtime.plan is not None and loaded.runtime.machine is not None:
            self._check = PlanCheck(
                loaded.file.paths[0], loaded.runtime.plan, loaded.engine.runner.sweeps
            )
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

        drafting = self.engine.drafting
        totals = None if drafting is None else drafting.totals
        return explain(self.runtime, self.engine.runner, totals)

    def set_budget(self, memory: int | str) -> Plan:
        """Run within another budget from the next step on, without loading anew.

        The Plan is the one that loading with ``memory`` would make, for the context there is, and
        is returned. Memory that it does not need goes back to the system at once: slots of experts
        first, then weights that will be streamed, and KV where there is no room for that of all
        requests; what more memory allows is read now. Answers that are under way keep their bits.
        BudgetTooSmall, with the smallest that will do, leaves everything as it was. Any thread may
        call.
        """
        from strata.engine.live_budget import set_budget

        size = _size(memory)
        with self.driver.alone() as engine:
            plan = set_budget(self.runtime, engine, size)
            # What ran by one Plan and then by another says nothing of either.
            self._check = None
            return plan

    @property
    def context(self) -> int:
        """Positions that a prompt and its answer share; fewer than ``wanted_context`` where memory
        is short and none was asked for."""
        return self.engine.context

    def compile(
        self,
        *,
        json_schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        choice: Sequence[str] | None = None,
    ) -> Grammar:
        """What answers must obey, for ``SamplingParams(grammar=...)``: JSON that is valid under a
        schema, text that matches an expression (Rust's syntax) as a whole, one of some texts, or a
        grammar in llama.cpp's GBNF or llguidance's Lark. UsageError unless exactly one is given,
        GrammarError for one that is not usable."""
        given = [json_schema, regex, grammar, choice]
        if sum(each is not None for each in given) != 1:
            raise UsageError("give exactly one of json_schema, regex, grammar and choice")
        asking.typed("regex", regex, str, optional=True)
        asking.typed("grammar", grammar, str, optional=True)
        asking.typed("json_schema", json_schema, Mapping, optional=True)
        compiler = self._grammars
        if json_schema is not None:
            return compiler.json_schema(json_schema)
        if choice is not None:
            if isinstance(choice, str) or not choice:
                raise UsageError("choice is a list of texts")
            for text in choice:
                asking.typed("each choice", text, str)
            return compiler.regex("|".join(map(_escaped, choice)))
        return compiler.grammar(grammar) if grammar is not None else compiler.regex(regex or "")

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        from importlib.util import find_spec

        if find_spec("llguidance") is None:
            raise UsageError("grammars need llguidance: pip install 'strata-llm[server]'")
        from strata.decode.grammar import GrammarCompiler

        return GrammarCompiler(self.tokenizer, account=self.runtime.guarded)

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of ``text``; see ``Tokenizer.encode``."""
        asking.typed("text", text, str)
        return encoded(
            self.tokenizer, text, self.ledger, add_special=add_special, parse_special=parse_special
        ).tolist()

    @overload
    def generate(
        self,
        prompts: str | list[int] | Mapping[str, Any],
        params: Params | None = None,
        *,
        n: Literal[1] = 1,
        schema: object = None,
        stream: Literal[False] = False,
        continuing: bool = True,
        progress: bool | None = None,
    ) -> Output: ...
    @overload
    def generate(
        self,
        prompts: list[str] | list[list[int]] | list[dict[str, Any]],
        params: Params | Sequence[Params] | None = None,
        *,
        n: Literal[1] = 1,
        schema: object = None,
        stream: Literal[False] = False,
        continuing: bool = True,
        progress: bool | None = None,
    ) -> list[Output]: ...
    @overload
    def generate(
        self,
        prompts: Any,
        params: Params | Sequence[Params] | None = None,
        *,
        n: int = 1,
        schema: object = None,
        stream: Literal[True],
        continuing: bool = True,
        progress: bool | None = None,
    ) -> Iterator[Chunk]: ...
    @overload
    def generate(
        self,
        prompts: Any,
        params: Params | Sequence[Params] | None = None,
        *,
        n: int,
        schema: object = None,
        stream: Literal[False] = False,
        continuing: bool = True,
        progress: bool | None = None,
    ) -> Any: ...

    def generate(
        self,
        prompts: Any,
        params: Params | Sequence[Params] | None = None,
        *,
        n: int = 1,
        schema: object = None,
        stream: bool = False,
        continuing: bool = True,
        progress: bool | None = None,
    ) -> Any:
        """Continue one prompt or a list of them, each text, token ids, or a dict with ``prompt`` or
        ``prompt_token_ids``. Those of a list run together.

        Text gets the tokens that the model wants at a beginning, and names of special tokens in it
        become these tokens; ids are taken as they are. ``params`` are SamplingParams or a dict of
        what differs from the model's own, for all prompts or a list with one for each.
        ``continuing`` False: the answer begins a text of its own, as in a conversation.

        One prompt gives one Output, a list gives a list in its order, with ``n`` above 1 of lists
        of so many; with ``stream`` Chunks come as tokens do, those of all answers mixed. ``schema``
        is a JSON schema or a class of pydantic's: answers obey it, and ``Output.parsed`` is the
        value. ``progress`` draws a line on standard error (None: of long lists, on a terminal).
        Everything is checked before the first token: UsageError for what cannot be served,
        ArgumentTypeError for what is of a wrong type.
        """
        batch, one = asking.prompts_of(prompts)
        ids = [
            prompt_ids(self.tokenizer, p, self.ledger) if isinstance(p, str) else p for p in batch
        ]
        return self._answer(
            ids, one, params, n, schema, stream=stream, continuing=continuing, progress=progress
        )

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: Params | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: Literal[1] = 1,
        schema: object = None,
        stream: Literal[False] = False,
        progress: bool | None = None,
    ) -> Output: ...
    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        params: Params | Sequence[Params] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: Literal[1] = 1,
        schema: object = None,
        stream: Literal[False] = False,
        progress: bool | None = None,
    ) -> list[Output]: ...
    @overload
    def chat(
        self,
        messages: Any,
        params: Params | Sequence[Params] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: int = 1,
        schema: object = None,
        stream: Literal[True],
        progress: bool | None = None,
    ) -> Iterator[Chunk]: ...
    @overload
    def chat(
        self,
        messages: Any,
        params: Params | Sequence[Params] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: int,
        schema: object = None,
        stream: Literal[False] = False,
        progress: bool | None = None,
    ) -> Any: ...

    def chat(
        self,
        messages: Any,
        params: Params | Sequence[Params] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        n: int = 1,
        schema: object = None,
        stream: bool = False,
        progress: bool | None = None,
    ) -> Any:
        """Answer a conversation of ``{"role": ..., "content": ...}`` with the model's template, or
        a list of conversations together.

        ChatTemplateError if the model has no template. All else as in ``generate``.
        """
        batch, one = asking.conversations_of(messages)
        asking.typed("tools", tools, list, tuple, optional=True)
        ids = [list(chat_ids(self.tokenizer, each, self.ledger, tools)) for each in batch]
        return self._answer(
            ids, one, params, n, schema, stream=stream, continuing=False, progress=progress
        )

    def prompt_logprobs(self, prompt: str | list[int]) -> list[float | None]:
        """The natural log-probability of each token of a prompt, given all before it; None for the
        first, which nothing precedes. Text becomes tokens as in ``generate``."""
        ids = self._one_prompt(prompt)
        if len(ids) == 1:
            return [None]
        with self.driver.alone() as engine:
            return [None, *engine.logprobs(ids, 0).tolist()]

    def known_tokens(self, prompt: str | list[int]) -> tuple[int, int]:
        """How many tokens of a prompt, from the first, would not be computed again: those whose KV
        is in memory, and those whose KV is there or in ``kv_store``. Whole blocks of 64 count, and
        the last token never does. Text becomes tokens as in ``generate``."""
        ids = self._one_prompt(prompt)
        with self.driver.alone() as engine:
            return engine.known(ids)

    def _one_prompt(self, prompt: object) -> Sequence[int]:
        texts, one = asking.prompts_of(prompt)
        if not one:
            raise UsageError("give one prompt at a time")
        (text,) = texts
        return prompt_ids(self.tokenizer, text, self.ledger) if isinstance(text, str) else text

    def beam_search(
        self,
        prompt: str | list[int],
        *,
        beam_width: int = 4,
        max_tokens: int = 16,
        n: int = 1,
        length_penalty: float = 1.0,
        ignore_eos: bool = False,
        until: Event | None = None,
    ) -> list[BeamOutput]:
        """The ``n`` best answers that a search along the ``beam_width`` likeliest ways finds, the
        best first: by the sum of their log-probabilities over length ** ``length_penalty``.

        Beams share KV up to where they part, and are computed together; other requests go on
        between its steps. Text becomes tokens as in ``generate``. Where ``until`` is set before
        its end, the best ways so far are given.
        """
        ids = self._one_prompt(prompt)
        for name, number in (("beam_width", beam_width), ("max_tokens", max_tokens), ("n", n)):
            asking.typed(name, number, int)
        asking.typed("length_penalty", length_penalty, int, float)
        from strata.engine.beam_search import BeamParams

        params = BeamParams(beam_width, n, max_tokens, length_penalty, ignore_eos)
        search = self.engine.beam_search(ids, params)
        try:
            while not (search.over or (until is not None and until.is_set())):
                with self.driver.alone() as engine:
                    engine.advance(search)
        finally:
            if not search.over:
                with self.driver.alone():
                    search.close()
        return [BeamOutput.of(beam, self.tokenizer) for beam in search.best]

    def _answer(
        self,
        ids: Sequence[Sequence[int]],
        one: bool,
        given: object,
        n: int,
        schema: object,
        *,
        stream: bool,
        continuing: bool,
        progress: bool | None,
    ) -> Any:
        """Run prompts: an Output, a list of them, or with ``n`` above 1 of lists; or Chunks."""
        params = asking.params_of(given, self.sampling_defaults, len(ids))
        if schema is not None:
            if any(each.grammar is not None for each in params):
                raise UsageError("a schema and a grammar exclude each other")
            obeyed = self.compile(json_schema=asking.schema_of(schema))
            params = [replace(each, grammar=obeyed, ignore_eos=False) for each in params]
        every = [choice for each in params for choice in asking.choices(each, n)]
        prompts = [prompt for prompt in ids for _ in range(n)]
        run = self._start(prompts, every, schema, continuing=continuing)
        if stream:
            return run
        shown = asking.shown(run, len(prompts), progress, lambda chunk: chunk.output is not None)
        return asking.shaped(whole(shown, len(prompts)), one, n)

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
        from strata.report import perplexity

        tokenizer = self.tokenizer
        asking.typed("text", text, str, Sequence)
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
        ``normalize`` is False. UsageError for texts longer than the context, and for more
        dimensions than there are.
        """
        one = isinstance(texts, str)
        batch: Sequence[Any] = [texts] if one else texts
        ids = [
            encoded(self.tokenizer, t, self.ledger, add_special=True) if isinstance(t, str) else t
            for t in batch
        ]
        if self.model.ranks:
            raise UsageError("this model scores pairs of texts (`strata rank`) and embeds none")
        width = embedding_model(self.model).row_width
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
            how: Pooling = "last" if self.model.causal else "first"
            return engine.embed(pairs, how, progress)[:, 0]

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
        from strata.report import measure

        with self.driver.alone(idle=True) as engine:
            return measure(
                engine, prompt=prompt, gen=gen, depth=depth, repeat=repeat, progress=progress
            )

    def close(self) -> None:
        """Free weights and KV; the object cannot be used afterwards. Safe to call twice.

        What is being written to the store of prefixes is written first.
        """
        self.driver.close()
        if self._check is not None:
            self._check.end()
            self._check = None
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
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        schema: object = None,
        *,
        continuing: bool,
    ) -> Iterator[Chunk]:
        """Check everything now, run when iterated."""
        for prompt, each in zip(prompts, params, strict=True):
            # Before it is made a list, which takes nine times as much.
            self.engine.limit(prompt, each)
        jobs = [
            Job(list(prompt), each, self.tokenizer.stream(continuing=continuing))
            for prompt, each in zip(prompts, params, strict=True)
        ]
        self.driver.check(jobs)
        return self._run(jobs, schema)

    def _run(self, jobs: Sequence[Job], schema: object) -> Iterator[Chunk]:
        answers = [Answer(index, schema) for index in range(len(jobs))]
        with self.driver.submit(jobs) as run:
            for index, delta in run:
                yield answers[index].add(delta)


def _escaped(text: str) -> str:
    """A text as a regular expression of Rust's, which knows no other escapes than these."""
    return re.sub(r"([\\.+*?()|\[\]{}^$#&\-~])", r"\\\1", text)


def _draft_model(model: str | Path | None, progress: LoadProgress | None) -> Path | OwnPart | None:
    """Where a model lies that is referred to, downloaded if need be, or which part of the model
    itself is meant."""
    if not isinstance(model, str):
        return model
    return own_part(model) or _resolved(model, progress)


def _resolved(model: str, progress: LoadProgress | None) -> Path:
    from strata.hub.references import resolve

    return resolve(model, progress=progress)


def _directory(chosen: str | Path | Literal[False] | None) -> Path | Literal[False] | None:
    return Path(chosen).expanduser() if isinstance(chosen, str | Path) else chosen


def _size(size: int | str) -> int:
    return parse_size(size) if isinstance(size, str) else size
