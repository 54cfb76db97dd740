"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample
from strata.errors import UsageError
from strata.server.answers import Answer, Answers, respond
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError
from strata.server.logprobs import token_text
from strata.server.openai.params import grammar_of, sampling_params
from strata.server.openai.replies import Completion
from strata.server.openai.requests import CompletionRequest
from strata.server.openai.writer import OpenAIWriter
from strata.server.parsers import Piece
from strata.server.replies import EVENT_STREAM, while_there
from strata.server.service import Service

PATH = "/v1/completions"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoint."""

    @routes.post(PATH, response_model=Completion, responses=documented(OpenAIError, EVENT_STREAM))
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
            grammar=await while_there(request, grammar_of(service, body)),
        )
        echoes = [_text(service, prompt) if body.echo else "" for prompt in given]
        each = body.n or 1
        run = service.run(prompts, params, choices=each, continuing=True)
        answers = Answers(run, [None] * (each * len(prompts)), each)
        writer = _Writer(service, answers, body, echoes)
        return await respond(request, answers, writer, bool(body.stream))


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


class _Writer(OpenAIWriter):
    path = PATH
    prefix = "cmpl"
    objects = ("text_completion", "text_completion")

    def __init__(
        self, service: Service, answers: Answers, body: CompletionRequest, echoes: list[str]
    ) -> None:
        super().__init__(service, answers, body)
        self._logprobs = body.logprobs is not None
        self._echoes = [echo for echo in echoes for _ in range(body.n or 1)]

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIWriter."""
        text = self._echoes[index] + answer.text
        logprobs = self._tokens(answer.samples, answer.offsets)
        return _choice(index, text, logprobs, answer.finish_reason)

    def beginning(self, index: int) -> dict[str, Any] | None:
        """See OpenAIWriter."""
        echo = self._echoes[index]
        return _choice(index, echo, None, None) if echo else None

    def chunks(
        self, index: int, answer: Answer, pieces: list[Piece], samples: list[Sample]
    ) -> Iterator[dict[str, Any]]:
        """See OpenAIWriter."""
        logprobs = self._tokens(samples, answer.offsets[-1:])
        if pieces or logprobs or answer.finish_reason is not None:
            text = "".join(str(piece) for piece in pieces)
            yield _choice(index, text, logprobs, answer.finish_reason)

    def _tokens(self, samples: list[Sample], offsets: list[int]) -> dict[str, Any] | None:
        """The old form of logprobs; a token's offset is that of the text it came with."""
        if not self._logprobs or not samples:
            return None

        def name(id: int) -> str:
            return token_text(self.tokenizer, id)

        return {
            "tokens": [name(sample.token) for sample in samples],
            "token_logprobs": [sample.logprob for sample in samples],
            "top_logprobs": [{name(id): logprob for id, logprob in s.top} for s in samples],
            "text_offset": offsets,
        }


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
