"""How the answers of chat and completions go out, whole or as chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from time import time
from typing import Any, ClassVar
from uuid import uuid4

from strata import __version__
from strata.decode import Sample
from strata.server.answers import Answer, Answers
from strata.server.errors import ApiError, error_body
from strata.server.openai.requests import Common
from strata.server.parsers import Piece
from strata.server.replies import EVENT_STREAM, sse, sse_progress
from strata.server.service import Service
from strata.server.timings import PromptProgress, timings


class OpenAIWriter(ABC):
    """A Writer of which subclasses put choices into the form of their endpoint, at ``path``."""

    media_type = EVENT_STREAM
    path: ClassVar[str]
    prefix: ClassVar[str]
    """Of ids."""
    objects: ClassVar[tuple[str, str]]
    """What answers and chunks are called."""

    prompt_logprobs: list[Any] | None = None
    """vLLM's, where they were asked for."""

    def __init__(self, service: Service, answers: Answers, body: Common) -> None:
        self.tokenizer = service.llm.tokenizer
        self.answers = answers
        self._timings = bool(body.timings_per_token)
        self._progress = bool(body.return_progress)
        self._verbose = service.settings.verbose if body.verbose is None else body.verbose
        self._pause_s = service.settings.keepalive_s
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._head = {
            "id": f"{self.prefix}-{uuid4().hex}",
            "created": int(time()),
            "model": service.name,
            # What the bits of answers depend on beside the model.
            "system_fingerprint": f"strata-{__version__}-{service.llm.runtime.kv_type.name}",
        }

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """A finished choice."""

    @abstractmethod
    def beginning(self, index: int) -> dict[str, Any] | None:
        """The choice of the first chunk, before any token."""

    @abstractmethod
    def nothing(self, index: int) -> dict[str, Any]:
        """The choice of a chunk that tells nothing of it."""

    @abstractmethod
    def chunks(
        self, index: int, answer: Answer, pieces: list[Piece], samples: list[Sample]
    ) -> Iterator[dict[str, Any]]:
        """The choices of the chunks that one token makes."""

    def whole(self) -> dict[str, Any]:
        """See Writer."""
        choices = [self.choice(*numbered) for numbered in enumerate(self.answers.choices)]
        return {
            **self._head,
            "object": self.objects[0],
            "choices": choices,
            "usage": usage(self.answers),
            **self._beside(),
        }

    def _beside(self) -> dict[str, Any]:
        """What is not OpenAI's and was asked for, or is expected at llama-server's paths."""
        beside: dict[str, Any] = {}
        if self.prompt_logprobs is not None:
            beside["prompt_logprobs"] = self.prompt_logprobs
        if self._timings:
            beside["timings"] = timings(self.answers.choices[0])
        if self._verbose:
            prompt = self.answers.first_prompt
            text = self.tokenizer.decode(prompt, skip_special=False)
            beside["__verbose"] = {"prompt": text, "tokens_evaluated": len(prompt)}
        return beside

    async def stream(self) -> AsyncGenerator[str, None]:
        """See Writer."""
        head = {**self._head, "object": self.objects[1]}
        rest: dict[str, Any] = {"usage": None} if self._with_usage else {}
        for index in range(len(self.answers.choices)):
            if first := self.beginning(index):
                yield sse({**head, "choices": [first], **rest})
        progress = PromptProgress(self.answers, timed=self._timings)
        async for part in self.answers.parts(self._pause_s):
            for news in progress.news() if self._progress else ():
                yield sse({**head, "choices": [self.nothing(0)], **rest, **news})
            if part is None:
                yield sse_progress(self.answers.run.progress)
                continue
            index, pieces, samples = part
            answer = self.answers.choices[index]
            timed = {"timings": timings(answer)} if self._timings else {}
            for choice in self.chunks(index, answer, pieces, samples):
                yield sse({**head, "choices": [choice], **rest, **timed})
        if self._with_usage:
            yield sse({**head, "choices": [], "usage": usage(self.answers), **self._beside()})
        yield "data: [DONE]\n\n"

    def failed(self, error: ApiError) -> str:
        """See Writer."""
        return sse(error_body(self.path, error))


def usage(answers: Answers) -> dict[str, Any]:
    """The ``usage`` object."""
    prompt, completion = answers.prompt_tokens, answers.output_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answers.cached_tokens},
    }
