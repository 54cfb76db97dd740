"""The class for users whose program is asynchronous: as ``LLM``, with answers that are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

from strata import asking
from strata.answers import BeamOutput, Chunk, Output
from strata.llm import LLM

_WAITING = 64
"""Calls that wait for their answers, each in a thread; further ones wait for these."""


class AsyncLLM:
    """An LLM whose ``generate`` and ``chat`` are awaited, and ``stream`` and ``stream_chat`` are
    iterated with ``async for``. Calls that are made at once run together, as many as ``parallel``
    says. A task that is cancelled ends its answers.

    ``AsyncLLM(model, ...)`` takes what LLM takes, and loads at once; ``await AsyncLLM.load(...)``
    loads beside other tasks. ``llm`` is the LLM itself.
    """

    def __init__(self, model: str | Path | LLM, **options: Any) -> None:
        self.llm = model if isinstance(model, LLM) else LLM(model, **options)
        self._threads = ThreadPoolExecutor(_WAITING, thread_name_prefix="strata-async")

    @classmethod
    async def load(cls, model: str | Path, **options: Any) -> AsyncLLM:
        """An AsyncLLM, loaded in a thread."""
        return await asyncio.to_thread(cls, model, **options)

    async def generate(
        self, prompts: Any, params: Any = None, *, n: int = 1, **options: Any
    ) -> Any:
        """See ``LLM.generate``."""
        _, one = asking.prompts_of(prompts)
        answers = await self._answers(
            lambda: self.llm.generate(prompts, params, n=n, stream=True, **options)
        )
        return asking.shaped(answers, one, n)

    async def chat(self, messages: Any, params: Any = None, *, n: int = 1, **options: Any) -> Any:
        """See ``LLM.chat``."""
        _, one = asking.conversations_of(messages)
        answers = await self._answers(
            lambda: self.llm.chat(messages, params, n=n, stream=True, **options)
        )
        return asking.shaped(answers, one, n)

    async def embed(self, texts: Any, **options: Any) -> Any:
        """See ``LLM.embed``."""
        return await self._in_thread(lambda: self.llm.embed(texts, **options))

    async def beam_search(self, prompt: str | list[int], **options: Any) -> list[BeamOutput]:
        """See ``LLM.beam_search``. A task that is cancelled ends the search before its next
        step."""
        left = Event()
        try:
            found: list[BeamOutput] = await self._in_thread(
                lambda: self.llm.beam_search(prompt, **options, until=left)
            )
            return found
        finally:
            left.set()

    def stream(self, prompts: Any, params: Any = None, **options: Any) -> AsyncIterator[Chunk]:
        """Chunks as ``LLM.generate`` with ``stream`` gives them."""
        return self._chunks(lambda: self.llm.generate(prompts, params, stream=True, **options))

    def stream_chat(
        self, messages: Any, params: Any = None, **options: Any
    ) -> AsyncIterator[Chunk]:
        """Chunks as ``LLM.chat`` with ``stream`` gives them."""
        return self._chunks(lambda: self.llm.chat(messages, params, stream=True, **options))

    async def close(self) -> None:
        """Free weights and KV, after the step under way."""
        await self._in_thread(self.llm.close)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _answers(self, start: Callable[[], Iterator[Chunk]]) -> list[Output]:
        """All of them in order; a task that is cancelled ends them before their next token."""
        left = Event()

        def work() -> list[Output]:
            found: dict[int, Output] = {}
            for chunk in start():
                if left.is_set():
                    break
                if chunk.output is not None:
                    found[chunk.index] = chunk.output
            return [found[index] for index in sorted(found)]

        try:
            found: list[Output] = await self._in_thread(work)
            return found
        finally:
            left.set()

    async def _chunks(self, start: Callable[[], Iterator[Chunk]]) -> AsyncIterator[Chunk]:
        loop, left = asyncio.get_running_loop(), Event()
        came: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()

        def give(item: Chunk | BaseException | None) -> None:
            # Whoever waited may be gone, with the loop.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(came.put_nowait, item)

        def work() -> None:
            try:
                for chunk in start():
                    if left.is_set():
                        break
                    give(chunk)
                give(None)
            except BaseException as error:
                give(error)

        self._threads.submit(work)
        try:
            while (item := await came.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
