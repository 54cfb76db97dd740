"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample
from strata.engine import Delta
from strata.errors import UsageError
from strata.server.bridge import Run
from strata.server.conversation import Answer, ended_by_token
from strata.server.errors import ApiError, OpenAIError, as_api_error, documented, error_body
from strata.server.openai.common import grammar_of, heading, sampling_params, token_name, usage
from strata.server.openai.replies import Completion
from strata.server.openai.requests import CompletionRequest
from strata.server.replies import (
    EVENT_STREAM,
    EVENTS,
    Reply,
    StreamReply,
    sse,
    sse_progress,
    unless_gone,
)
from strata.server.service import Service

PATH = "/v1/completions"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoint."""

    @routes.post(
        PATH,
        response_model=Completion,
        responses={
            200: {"content": EVENTS},
            **documented(OpenAIError),
        },
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue texts or token ids as they are, without a chat template."""
        service.check_model(body.model)
        _refuse_what_is_missing(body)
        given = _given(body)
        prompts = await _ids(service, given)
        params = sampling_params(
            body,
            max_tokens=body.max_tokens or 16,
            logprobs=body.logprobs,
            grammar=await grammar_of(service, body),
        )
        echoes = [_text(service, prompt) if body.echo else "" for prompt in given]
        run = service.run(prompts, params, choices=body.n or 1, continuing=True)
        writer = _Writer(service, run, sum(map(len, prompts)), echoes, body)
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamReply(writer.stream(with_usage), EVENT_STREAM, run)
        return Reply(await unless_gone(request, run, writer.whole()))


def _refuse_what_is_missing(body: CompletionRequest) -> None:
    if body.suffix:
        raise ApiError(
            400, "suffix is not supported: texts are continued at their end", param="suffix"
        )
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            400, "best_of is not supported: leave it out or set it to n", param="best_of"
        )
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo has no logprobs here: ask for one of them", param="echo")


def _given(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts as a list, also when there is one."""
    given: Any = body.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


async def _ids(service: Service, prompts: list[str | list[int]]) -> list[list[int]]:
    if len(prompts) > service.settings.choices:
        raise UsageError(f"at most {service.settings.choices} prompts can be continued at once")
    return [
        await service.encode(prompt, add_special=True) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]


def _text(service: Service, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else service.llm.tokenizer.decode(prompt)


class _Writer:
    """Puts continuations into OpenAI's form."""

    def __init__(
        self,
        service: Service,
        run: Run,
        prompt_tokens: int,
        echoes: list[str],
        body: CompletionRequest,
    ) -> None:
        self._service = service
        self._run = run
        self._prompt_tokens = prompt_tokens
        self._logprobs = body.logprobs is not None
        self._pause_s = service.settings.keepalive_s
        self._echoes = [echo for echo in echoes for _ in range(body.n or 1)]
        self._answers = [Answer(None) for _ in self._echoes]
        self._offsets = [0] * len(self._echoes)

    async def whole(self) -> dict[str, Any]:
        parts: list[list[tuple[str, list[Sample]]]] = [[] for _ in self._answers]
        async for event in self._run.tokens():
            assert event is not None, "there is no pause to report"
            index, delta = event
            parts[index].append(self._take(index, delta))
        choices = []
        for index, answer in enumerate(self._answers):
            logprobs = [self._tokens(index, text, samples) for text, samples in parts[index]]
            text = self._echoes[index] + answer.text
            choices.append(_choice(index, text, _joined(logprobs), answer.finish_reason))
        head = heading(self._service, "cmpl", "text_completion")
        return {**head, "choices": choices, "usage": self._usage()}

    async def stream(self, with_usage: bool) -> AsyncGenerator[str, None]:
        head = heading(self._service, "cmpl", "text_completion")
        rest: dict[str, Any] = {"usage": None} if with_usage else {}
        try:
            for index, echo in enumerate(self._echoes):
                if echo:
                    yield sse({**head, "choices": [_choice(index, echo, None, None)], **rest})
            async for event in self._run.tokens(self._pause_s):
                if event is None:
                    yield sse_progress(self._run.progress)
                    continue
                index, delta = event
                text, samples = self._take(index, delta)
                logprobs = self._tokens(index, text, samples)
                if text or logprobs or delta.finish_reason is not None:
                    choice = _choice(index, text, logprobs, delta.finish_reason)
                    yield sse({**head, "choices": [choice], **rest})
            if with_usage:
                yield sse({**head, "choices": [], "usage": self._usage()})
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield sse(error_body(PATH, as_api_error(error)))

    def _take(self, index: int, delta: Delta) -> tuple[str, list[Sample]]:
        self._answers[index].add(delta)
        return delta.text, [] if ended_by_token(delta) else [delta.sample]

    def _usage(self) -> dict[str, Any]:
        requests = [answer.request for answer in self._answers]
        return usage(self._prompt_tokens, requests)

    def _tokens(self, index: int, text: str, samples: list[Sample]) -> dict[str, Any] | None:
        """The old form of logprobs; a token's offset is that of the text it came with."""
        if not self._logprobs or not samples:
            return None
        offset = self._offsets[index]
        self._offsets[index] += len(text)

        def name(id: int) -> str:
            return token_name(self._service, id)[0]

        return {
            "tokens": [name(sample.token) for sample in samples],
            "token_logprobs": [sample.logprob for sample in samples],
            "top_logprobs": [{name(id): logprob for id, logprob in s.top} for s in samples],
            "text_offset": [offset] * len(samples),
        }


def _joined(parts: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    return {key: [item for part in known for item in part[key]] for key in known[0]}


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
