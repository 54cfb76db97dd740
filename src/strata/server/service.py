"""What every protocol asks of the model: names, prompts, grammars, and runs."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from threading import Lock, get_ident, get_native_id
from time import monotonic, time
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.types import ASGIApp

from strata.decode import Sample, SamplingParams
from strata.decode.constraint import Grammar
from strata.decode.grammar import GrammarCompiler, GrammarsBusy
from strata.decode.params import LARGEST_SEED
from strata.decode.sampling import report
from strata.decode.schemas import enforced
from strata.engine import ContextExceeded, Engine, Job
from strata.errors import UsageError
from strata.giving_way import Pace, begin_work, give_way, set_pace
from strata.guard import limits
from strata.kv import PoolError
from strata.llm import LLM
from strata.server.admission import SHARE, Admission
from strata.server.bridge import AsyncRun, Bridge
from strata.server.errors import ApiError
from strata.server.file_store import FileStore
from strata.server.mcp import Programs
from strata.server.notes import note
from strata.server.preset import Preset
from strata.server.settings import Settings
from strata.server.telemetry.metrics import Metrics
from strata.sizes import format_size

T = TypeVar("T")

ANY_NAME = "*"
"""An alias that stands for every name."""

_UNPLANNED = 256 << 20
"""Bytes of all requests together where no budget is set."""
_RESERVED = frozenset(
    (
        *("messages", "tools", "documents", "chat_template", "self"),
        *("add_generation_prompt", "continue_final_message"),
    )
)
"""Variables of chat templates that no request may set."""

_VARIABLES = 1024
"""Characters of a request's variables for the chat template, as JSON: known templates go through
them for every message."""

_GRAMMAR_THREADS = 2
"""Threads that wait for grammars to be compiled."""

_GRAMMAR_WAIT_S = 60.0
_GRAMMAR_RETRY_S = 0.05
"""How long a request waits while other grammars are in use, and how often it looks."""

_RENDERING_COPIES = 3
"""Of a conversation, on its way to a guarded process and back."""

_LATER = 5
"""By how much the priority is lower of threads that work on large texts, as that of guarded
processes is."""

_TOLD = 8
"""Parts of a schema that are named."""

_LARGE = 64 << 10
"""Bytes of a request's texts from which on it waits for others that are as large: who asks little
does not wait for them, and together they take no more than one core from those who wait for tokens.
"""


class Service:
    """A loaded model as the protocols see it. ``names`` are those it answers to, first its own;
    with ``*`` among them it answers to any."""

    def __init__(
        self, llm: LLM, names: Sequence[str], settings: Settings, preset: Preset | None = None
    ) -> None:
        self.llm = llm
        self.preset = preset or Preset()
        llm.sampling_defaults = self.preset.defaults(llm.sampling_defaults)
        self.names = tuple(name for name in names if name != ANY_NAME)
        self._any_name = ANY_NAME in names
        self.settings = settings
        self.started = time()
        self.metrics = Metrics()
        self.bridge = Bridge(llm.driver, queue=settings.queue, observer=self.metrics)
        self.metrics.watch(llm, self.bridge)
        self._plan = llm.plan if llm.runtime.limited else None
        planned = _UNPLANNED if self._plan is None else self._plan.admitted_bytes
        self.admission = Admission(llm.ledger, settings.requests_bytes or planned)
        self.programs = Programs(settings.mcp_servers)
        self.files: FileStore | None = None
        self.batches: Batches | None = None
        if settings.files is not None:
            # It answers through the application, which is over this.
            from strata.server.batches import Batches

            self.files = FileStore(settings.files, settings.files_bytes)
            self.batches = Batches(self, self.files)
        # Tokenizing would hold up everybody in the event loop.
        self._texts = ThreadPoolExecutor(1, "strata-text")
        self._large_texts = ThreadPoolExecutor(1, "strata-large-text", self._come_later)
        # A template that takes long holds up chats only, and they have to do with it.
        self._renderer = ThreadPoolExecutor(1, "strata-template", self._come_later)
        self._scorer = ThreadPoolExecutor(1, "strata-score")
        self._keeper = ThreadPoolExecutor(1, "strata-keeper", self._come_later)
        self.searching = asyncio.Lock()
        """Held by the one beam search that goes on."""
        self._compilers = ThreadPoolExecutor(_GRAMMAR_THREADS, "strata-grammar", self._come_later)
        templates = llm.tokenizer.chat_templates.values()
        self._renders_apart = any(template.foreign for template in templates)
        # Built before several threads use it.
        tokenizer = llm.tokenizer
        tokenizer.encode("a b")
        longest = max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))
        self._most_characters = llm.context * max(longest, 1)

    def _come_later(self) -> None:
        """Let this thread have processors, and the interpreter, behind those that compute and
        deliver tokens."""
        set_pace(Pace(lambda: self.bridge.status.running > 0))
        if sys.platform == "linux":
            # There a number of a thread is as good as one of a process.
            thread = get_native_id()
            before = os.getpriority(os.PRIO_PROCESS, thread)
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread, before + _LATER)

    def app(self) -> ASGIApp:
        """Every protocol's routes over it."""
        from strata.server.app import create_app

        return create_app(self)

    def begin_closing(self) -> None:
        """No more requests are taken."""
        self.bridge.closing = True
        # They may work for longer than anybody waits.
        self.programs.close()

    def cut_off(self) -> None:
        """Those that run are ended."""
        self.bridge.cut_off()

    def close(self) -> bool:
        """End the threads; False if the engine's is still in a step."""
        self._texts.shutdown(wait=False, cancel_futures=True)
        self._large_texts.shutdown(wait=False, cancel_futures=True)
        self._renderer.shutdown(wait=False, cancel_futures=True)
        self._scorer.shutdown(wait=False, cancel_futures=True)
        self._keeper.shutdown(wait=False, cancel_futures=True)
        self._compilers.shutdown(wait=False, cancel_futures=True)
        return self.bridge.close(timeout_s=5.0)

    @property
    def name(self) -> str:
        """The model's name in answers."""
        return self.names[0]

    async def set_budget(self, memory: int) -> None:
        """Run within another budget; see ``LLM.set_budget``. What requests may take follows."""
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(self._scorer, lambda: self.llm.set_budget(memory))
        self._plan = plan
        self.admission.capacity = self.settings.requests_bytes or plan.admitted_bytes

    def check_model(self, wanted: str | None) -> None:
        """ApiError 404 unless ``wanted`` is a name of the model that is loaded, or nothing."""
        if not wanted or self._any_name:
            return
        if wanted not in self.names and wanted.removesuffix(":latest") not in self.names:
            raise ApiError(
                404,
                f"there is no model {wanted!r} here; this server has: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )

    async def off_loop(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on texts of the request that is served, done in another thread."""
        large = SHARE.get().text_bytes >= _LARGE
        thread = self._large_texts if large else self._texts
        return await asyncio.get_running_loop().run_in_executor(thread, _begin(work))

    async def beside(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on all parts of the request that is served: done in another thread
        where they may be many."""
        return await self.off_loop(work) if SHARE.get().text_bytes else work()

    async def encode(
        self, text: str, *, add_special: bool = False, counted: bool = False
    ) -> list[int]:
        """Token ids of a prompt; ContextExceeded as soon as it is known not to fit the context,
        unless it is only ``counted``."""
        most = None if counted else self.llm.context
        ids = await self.tokenize(text, add_special=add_special, most=most)
        return ids.tolist()

    async def tokenize(
        self,
        text: str,
        *,
        add_special: bool = False,
        parse_special: bool = True,
        most: int | None = None,
    ) -> array[int]:
        """Token ids of any text, ``most`` at most; ContextExceeded without any work for one that
        surely has more than the context, ApiError for one that takes more memory to encode than
        there is."""
        if len(text) > self._most_characters:
            raise ContextExceeded(
                f"a text of {len(text)} characters does not fit a context of "
                f"{self.llm.context} tokens",
                self.llm.context + 1,
                self.llm.context,
            )
        tokenizer = self.llm.tokenizer

        def encode() -> array[int]:
            ids = array("i")
            for part in tokenizer.encode_parts(
                text, add_special=add_special, parse_special=parse_special
            ):
                ids.extend(part)
                give_way()
                if most is not None and len(ids) > most:
                    raise ContextExceeded(
                        f"a prompt of more than {most} tokens does not fit a context of {most}",
                        len(ids),
                        most,
                    )
            return ids

        working = await self.off_loop(lambda: tokenizer.working_bytes(text))
        what = f"a stretch of the text that cannot be cut takes {format_size(working)} to encode"
        async with SHARE.get().lent(working, what):
            return await self.off_loop(encode)

    async def alone(self, work: Callable[[Engine], T]) -> T:
        """The result of ``work`` on the engine between two steps, one such work at a time; ApiError
        where too little KV is free for it."""

        def run() -> T:
            with self.llm.driver.alone() as engine:
                return work(engine)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._scorer, run)
        except PoolError:
            raise ApiError(
                503, "other requests hold the KV that this one needs; try again later"
            ) from None

    async def on_the_store(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on what is kept on disk, one such work at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._keeper, _begin(work))

    async def prompt_samples(self, prompt: Sequence[int], top: int) -> list[Sample]:
        """All tokens of a prompt but the first, each with its log-probability and the ``top`` most
        probable ones."""
        tokens = list(prompt)
        found: list[Sample] = []

        def take(rows: NDArray[np.float32]) -> None:
            found.extend(report(tokens[1 + len(found)], row, top) for row in rows)

        if len(tokens) > 1:
            await self.alone(lambda engine: engine.visit_logits(tokens, 0, take))
        return found

    async def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        counted: bool = False,
        ending: str = "",
    ) -> list[int]:
        """Token ids of ``chat_text``; as many as there are if they are only ``counted``."""
        text = await self.chat_text(
            messages,
            tools=tools,
            continue_final_message=continue_final_message,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
            ending=ending,
        )
        return await self.encode(text, counted=counted)

    async def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        ending: str = "",
    ) -> str:
        """A conversation by the model's template, with ``ending`` behind it where the last message
        is not continued."""
        if taken := _RESERVED & set(variables or ()):
            raise UsageError(
                f"chat_template_kwargs may not set {', '.join(sorted(taken))}: the server does"
            )
        if variables and len(await self.beside(lambda: json.dumps(variables))) > _VARIABLES:
            raise UsageError(f"chat_template_kwargs may take {_VARIABLES} characters at most")
        share = SHARE.get()
        # Of what is copied for a guarded process, and what that takes more.
        each = limits.TEMPLATE_BYTES_EACH + _RENDERING_COPIES if self._renders_apart else 0
        rendering = share.text_bytes * each
        what = f"rendering the conversation may take {format_size(rendering)} of memory"
        async with share.lent(rendering, what):
            text = await asyncio.get_running_loop().run_in_executor(
                self._renderer,
                _begin(
                    lambda: self.llm.tokenizer.apply_chat_template(
                        messages,
                        tools=tools,
                        add_generation_prompt=add_generation_prompt and not continue_final_message,
                        continue_final_message=continue_final_message,
                        **{**self.llm.tokenizer.usual_variables(tools), **(variables or {})},
                    )
                ),
            )
        return text + ("" if continue_final_message else ending)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Compiles grammars; ApiError if the package for it is not installed."""
        if find_spec("llguidance") is None:
            raise ApiError(400, "grammars need llguidance: pip install 'strata-llm[server]'")
        most = min(limits.GRAMMARS, self.llm.runtime.parallel)
        if self._plan is not None:
            most = self._plan.grammars
        if not most:
            raise ApiError(400, self._no_grammars, code="no_room_for_grammars")
        return GrammarCompiler(self.llm.tokenizer, most, self.llm.runtime.guarded)

    @property
    def _no_grammars(self) -> str:
        plan = self._plan
        assert plan is not None
        why = [choice.reason for choice in plan.choices if choice.name == "grammars"]
        return "; ".join(
            [
                f"this server's budget of {format_size(plan.budget)} has no room for grammars: "
                "JSON modes, schemas, regular expressions, and tools that have to be called",
                *why,
            ]
        )

    async def json_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """A grammar of JSON that is valid under ``schema``."""
        compiler = self.grammars
        left_open: list[str] = []

        def compile() -> Grammar:
            made = compiler.json_schema(schema)
            left_open[:] = enforced(schema)[1]
            return made

        found = await self.compiled(compile)
        note_left_open(left_open)
        return found

    async def compiled(self, work: Callable[[], Grammar]) -> Grammar:
        """The grammar that ``work`` compiles; waits for a while where others are in use. Who is
        cancelled ends it."""
        end = monotonic() + _GRAMMAR_WAIT_S
        while True:
            job = _Compilation(self.grammars, work)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._compilers, job.run)
            except asyncio.CancelledError:
                job.cancel()
                raise
            except GrammarsBusy:
                if monotonic() > end:
                    raise
            await asyncio.sleep(_GRAMMAR_RETRY_S)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        choices: int = 1,
        continuing: bool,
        show_special: bool = False,
        progress: bool = False,
    ) -> AsyncRun:
        """Continue each prompt ``choices`` times; job ``i`` is choice ``i % choices`` of a prompt.

        Tokens that there is no room for are not asked for. With a seed, choice ``i`` has the seed
        plus ``i``. ``show_special`` keeps the names of special tokens in the text. A
        stream with ``progress`` is told of each step of its prompt.
        """
        if len(prompts) * choices > self.settings.choices:
            raise UsageError(
                f"{len(prompts) * choices} answers are asked for at once; "
                f"this server gives at most {self.settings.choices}"
            )
        vocabulary = self.llm.model.vocab_size
        if any(token >= vocabulary for token in params.logit_bias):
            raise UsageError(f"logit_bias names a token beyond the vocabulary of {vocabulary}")
        tokenizer = self.llm.tokenizer
        jobs = [
            Job(
                prompt,
                self._for_choice(params, choice, len(prompt)),
                tokenizer.stream(skip_special=not show_special, continuing=continuing),
                progress,
            )
            for prompt in prompts
            for choice in range(choices)
        ]
        return self.bridge.submit(jobs)

    def _for_choice(self, params: SamplingParams, choice: int, length: int) -> SamplingParams:
        room = max(self.llm.context - length, 1)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        seed = None if params.seed is None else (params.seed + choice) & LARGEST_SEED
        return replace(params, max_tokens=limit, seed=seed)


def note_left_open(left_open: Sequence[str]) -> None:
    """Tell the caller what of a schema (``strata.decode.schemas.enforced``) an answer is not held
    to."""
    if left_open:
        some = ", ".join(left_open[:_TOLD])
        more = f" and {len(left_open) - _TOLD} more" if len(left_open) > _TOLD else ""
        note(f"the answer is not held to these parts of its schema: {some}{more}")


def _begin(work: Callable[[], T]) -> Callable[[], T]:
    """``work`` as a job of its own, by whose beginning its thread's pace goes."""

    def run() -> T:
        begin_work()
        return work()

    return run


class _Compilation:
    """A grammar that is compiled in another thread, and may be given up."""

    def __init__(self, compiler: GrammarCompiler, work: Callable[[], Grammar]) -> None:
        self._compiler = compiler
        self._work = work
        self._thread: int | None = None
        self._lock = Lock()

    def run(self) -> Grammar:
        """In the other thread."""
        self._thread = get_ident()
        try:
            return self._work()
        finally:
            with self._lock:
                self._thread = None

    def cancel(self) -> None:
        """Nobody waits for it any longer."""
        with self._lock:
            if self._thread is not None:
                self._compiler.abandon(self._thread)
