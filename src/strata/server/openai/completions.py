"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample
from strata.errors import UsageError
from strata.records import dataclass
from strata.server.answers import Answer, Answers, respond
from strata.server.beams import BeamAnswers, beam_params, check_beams, search_beams
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError
from strata.server.infill import infill_prompt
from strata.server.logprobs import token_text
from strata.server.openai.params import grammar_of, limit_of, prompt_scores, sampling_params
from strata.server.openai.replies import Completion
from strata.server.openai.requests import CompletionRequest
from strata.server.openai.writer import OpenAIWriter
from strata.server.parsers import Piece
from strata.server.replies import EVENT_STREAM, Reply, while_there
from strata.server.service import Service

PATH = "/v1/completions"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoint."""

    @routes.post(PATH, response_model=Completion, responses=documented(OpenAIError, EVENT_STREAM))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue texts or token ids as they are, without a chat template."""
        service.check_model(body.model)
        if check_beams(body):
            found = await while_there(request, _beams(service, body))
            echoes = [Echo()] * len(found.choices)
            return Reply(_Writer(service, found, body, echoes).whole())
        wanted, of = body.n or 1, body.best_of or body.n or 1
        _check(body, wanted, of)
        given = _given(body)
        prompts = await _ids(service, given, body.suffix)
        limit, silent = limit_of(body.max_tokens, body.n_predict, 16)
        params = sampling_params(
            service,
            body,
            max_tokens=limit,
            # Of several, those stay whose tokens are the likeliest on average.
            logprobs=0 if body.logprobs is None and of > wanted else body.logprobs,
            grammar=await while_there(request, grammar_of(service, body)),
        )
        echoes = [_echo(service, prompt) if body.echo else Echo() for prompt in given]
        if body.echo and body.logprobs is not None:
            for echo, prompt in zip(echoes, prompts, strict=True):
                echo.prompt = prompt
                echo.samples = await while_there(
                    request, service.prompt_samples(prompt, body.logprobs)
                )
        scores = None
        if body.prompt_logprobs is not None:
            top = body.prompt_logprobs
            scores = [
                await while_there(request, prompt_scores(service, prompt, top))
                for prompt in prompts
            ]
        progress = bool(body.stream and body.return_progress)
        run = service.run(prompts, params, choices=of, continuing=True, progress=progress)
        answers = Answers(run, [None] * (of * len(prompts)), of)
        for answer in answers.choices:
            answer.silent = silent
        writer = _Writer(service, answers, body, [e for e in echoes for _ in range(of)])
        writer.best = None if of == wanted else (of, wanted)
        writer.scores = scores and [score for score in scores for _ in range(of)]
        return await respond(request, answers, writer, bool(body.stream))


async def _beams(service: Service, body: CompletionRequest) -> BeamAnswers:
    limit = limit_of(body.max_tokens, body.n_predict, 16)[0]
    params = beam_params(body, limit, body.logprobs)
    prompts = await _ids(service, _given(body), None)
    return await search_beams(service, prompts, params, continuing=True)


def _check(body: CompletionRequest, wanted: int, of: int) -> None:
    if of < wanted:
        raise ApiError(400, f"best_of is {of}: fewer than the n of {wanted}", param="best_of")
    if of > wanted and body.stream:
        raise ApiError(
            400, "best_of cannot be streamed: which ones are best is known last", param="best_of"
        )
    if body.suffix and body.echo:
        raise ApiError(400, "suffix and echo exclude each other", param="suffix")


@dataclass
class Echo:
    """The prompt before an answer: its text, and with log-probabilities its tokens and all of them
    but the first as samples."""

    text: str = ""
    prompt: Sequence[int] = ()
    samples: Sequence[Sample] = ()


def _given(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts as a list, also when there is one."""
    given: Any = body.prompt
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


async def _ids(
    service: Service, prompts: list[str | list[int]], suffix: str | None
) -> list[list[int]]:
    if len(prompts) > service.settings.choices:
        raise UsageError(f"at most {service.settings.choices} prompts can be continued at once")
    if suffix:
        texts = [_echo(service, prompt).text for prompt in prompts]
        return [await infill_prompt(service, text, suffix) for text in texts]
    return [
        await service.encode(prompt, add_special=True) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]


def _echo(service: Service, prompt: str | list[int]) -> Echo:
    return Echo(prompt if isinstance(prompt, str) else service.llm.tokenizer.decode(prompt))


class _Writer(OpenAIWriter):
    path = PATH
    prefix = "cmpl"
    objects = ("text_completion", "text_completion")

    def __init__(
        self, service: Service, answers: Answers, body: CompletionRequest, echoes: list[Echo]
    ) -> None:
        super().__init__(service, answers, body)
        self._logprobs = body.logprobs is not None
        self._echoes = echoes
        self.best: tuple[int, int] | None = None
        """So many answers to each prompt, of which the best so many are given."""
        self.scores: list[list[Any]] | None = None

    def whole(self) -> dict[str, Any]:
        """See Writer."""
        found = super().whole()
        if self.best is None:
            return found
        of, wanted = self.best
        choices = found["choices"]
        kept: list[dict[str, Any]] = []
        for start in range(0, len(choices), of):
            ranked = sorted(range(start, start + of), key=lambda i: -self._likely(i))
            kept += [choices[i] for i in ranked[:wanted]]
        return {**found, "choices": [{**c, "index": i} for i, c in enumerate(kept)]}

    def _likely(self, index: int) -> float:
        """The mean log-probability of an answer's tokens."""
        logprobs = [sample.logprob or 0.0 for sample in self.answers.choices[index].samples]
        return sum(logprobs) / max(len(logprobs), 1)

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See OpenAIWriter."""
        echo = self._echoes[index]
        offsets = [len(echo.text) + offset for offset in answer.offsets]
        logprobs = self._tokens(answer.samples, offsets, echo)
        choice = _choice(index, echo.text + answer.text, logprobs, answer.finish_reason)
        return choice if self.scores is None else {**choice, "prompt_logprobs": self.scores[index]}

    def beginning(self, index: int) -> dict[str, Any] | None:
        """See OpenAIWriter."""
        echo = self._echoes[index]
        if not echo.text:
            return None
        return _choice(index, echo.text, self._tokens([], [], echo), None)

    def nothing(self, index: int) -> dict[str, Any]:
        """See OpenAIWriter."""
        return _choice(index, "", None, None)

    def chunks(
        self, index: int, answer: Answer, pieces: list[Piece], samples: list[Sample]
    ) -> Iterator[dict[str, Any]]:
        """See OpenAIWriter."""
        logprobs = self._tokens(samples, answer.offsets[-1:])
        if pieces or logprobs or answer.finish_reason is not None:
            text = "".join(str(piece) for piece in pieces)
            yield _choice(index, text, logprobs, answer.finish_reason)

    def _tokens(
        self, samples: Sequence[Sample], offsets: list[int], echo: Echo | None = None
    ) -> dict[str, Any] | None:
        """The old form of logprobs; a token's offset is that of the text it came with. Nothing is
        known of how likely the first token of an ``echo`` is."""
        before = echo is not None and bool(echo.prompt)
        if not self._logprobs or not (samples or before):
            return None

        def name(id: int) -> str:
            return token_text(self.tokenizer, id)

        first: list[Sample] = []
        if echo is not None and before:
            first = [Sample(echo.prompt[0])]
            lengths = [len(name(id)) for id in echo.prompt[:-1]]
            offsets = [*accumulate(lengths, initial=0), *offsets]
            samples = [*first, *echo.samples, *samples]
        top = [{name(id): logprob for id, logprob in s.top} for s in samples]
        return {
            "tokens": [name(sample.token) for sample in samples],
            "token_logprobs": [sample.logprob for sample in samples],
            "top_logprobs": [None, *top[1:]] if first else top,
            "text_offset": offsets,
        }


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
