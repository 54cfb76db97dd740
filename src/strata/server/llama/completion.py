"""``POST /completion`` and ``/infill``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from math import exp
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from strata.decode import Sample, SamplingParams
from strata.errors import UsageError
from strata.server.answers import Answer, Answers, respond
from strata.server.document import OpenAIError, documented
from strata.server.errors import ApiError, error_body
from strata.server.infill import infill_prompt
from strata.server.llama.requests import (
    CompletionRequest,
    InfillRequest,
    PromptObject,
    biases_of,
)
from strata.server.logprobs import token_text
from strata.server.openai.params import grammar_of, limit_of, sampling_params
from strata.server.replies import EVENT_STREAM, sse, sse_progress, while_there
from strata.server.service import Service
from strata.server.timings import PromptProgress, timings

PATH = "/completion"


def add_routes(routes: APIRouter, service: Service) -> None:
    """Add the endpoints."""
    errors = documented(OpenAIError)

    @routes.post("/completions", include_in_schema=False)
    @routes.post(PATH, responses=documented(OpenAIError, EVENT_STREAM))
    async def completion(body: CompletionRequest, request: Request) -> Response:
        """Continue texts, token ids, or both mixed."""
        return await _complete(service, body, request, await _prompts(service, body))

    @routes.post("/infill", responses=errors)
    async def infill(body: InfillRequest, request: Request) -> Response:
        """Fill the gap between two pieces of code."""
        files = [(file.filename, file.text) for file in body.input_extra or ()]
        before = body.input_prefix + body.prompt
        prompt = await infill_prompt(service, before, body.input_suffix, files, refused=501)
        return await _complete(service, body, request, [prompt])


async def _complete(
    service: Service, body: CompletionRequest, request: Request, prompts: Sequence[list[int]]
) -> Response:
    service.check_model(body.model)
    limit, silent = limit_of(body.n_predict, body.max_tokens, body.max_completion_tokens)
    probs = body.n_probs if body.n_probs is not None else body.logprobs
    biases, body.logit_bias = await biases_of(service, body.logit_bias), None
    each = body.n_cmpl or body.n or 1
    params = sampling_params(
        service,
        body,
        max_tokens=limit,
        logprobs=probs or None,
        processed_logprobs=bool(body.post_sampling_probs),
        grammar=await while_there(request, grammar_of(service, body)),
        logit_bias=biases,
    )
    progress = bool(body.stream and body.return_progress)
    run = service.run(prompts, params, choices=each, continuing=True, progress=progress)
    answers = Answers(run, [None] * (each * len(prompts)), each)
    for answer in answers.choices:
        answer.silent = silent
    writer = _Writer(service, answers, body, params)
    return await respond(request, answers, writer, bool(body.stream))


async def _prompts(service: Service, body: CompletionRequest) -> list[list[int]]:
    given: Any = body.prompt
    # Several prompts, unless there are ids among them: these and the texts between are one.
    one = not isinstance(given, list) or any(isinstance(part, int) for part in given)
    prompts = [given] if one else given
    if not prompts or len(prompts) > service.settings.choices:
        raise UsageError(f"from 1 to {service.settings.choices} prompts can be continued at once")
    return [await _ids(service, prompt) for prompt in prompts]


async def _ids(service: Service, prompt: Any) -> list[int]:
    if isinstance(prompt, PromptObject):
        if prompt.multimodal_data:
            raise UsageError("this server reads text only: the prompt has multimodal_data")
        prompt = prompt.prompt_string
    if isinstance(prompt, str):
        return await service.encode(prompt, add_special=True)
    ids: list[int] = []
    for number, part in enumerate(prompt):
        if isinstance(part, int):
            ids.append(part)
        elif isinstance(part, str):
            ids += await service.encode(part, add_special=number == 0)
        else:
            raise UsageError("prompt: token ids and texts are expected in one sequence")
    return ids


class _Writer:
    media_type = EVENT_STREAM

    def __init__(
        self,
        service: Service,
        answers: Answers,
        body: CompletionRequest,
        params: SamplingParams,
    ) -> None:
        self._service = service
        self._answers = answers
        self._body = body
        self._params = params
        self._pause_s = service.settings.keepalive_s
        self._fields = body.response_fields or []

    def whole(self) -> Any:
        """See Writer."""
        found = [self._final(*each, whole=True) for each in enumerate(self._answers.choices)]
        return found[0] if len(found) == 1 else found

    async def stream(self) -> AsyncGenerator[str, None]:
        """See Writer."""
        progress = PromptProgress(self._answers, timed=bool(self._body.timings_per_token))
        async for part in self._answers.parts(self._pause_s):
            for news in progress.news() if self._body.return_progress else ():
                yield sse({**self._partial(0, self._answers.choices[0], "", []), **news})
            if part is None:
                yield sse_progress(self._answers.run.progress)
                continue
            index, pieces, samples = part
            answer = self._answers.choices[index]
            text = "".join(str(piece) for piece in pieces)
            if samples or text:
                yield sse(self._partial(index, answer, text, samples))
            if answer.finish_reason is not None:
                yield sse(self._final(index, answer, whole=False))

    def failed(self, error: ApiError) -> str:
        """See Writer."""
        return sse(error_body(PATH, error))

    def _partial(
        self, index: int, answer: Answer, text: str, samples: list[Sample]
    ) -> dict[str, Any]:
        part = {
            "index": index,
            "content": text,
            "tokens": [sample.token for sample in samples],
            "stop": False,
            "id_slot": index,
            "tokens_predicted": answer.tokens,
            "tokens_evaluated": len(answer.request.prompt) if answer.request else 0,
            **self._probabilities(samples),
        }
        return {**part, "timings": timings(answer)} if self._body.timings_per_token else part

    def _final(self, index: int, answer: Answer, *, whole: bool) -> dict[str, Any]:
        request = answer.request
        prompt = request.prompt if request else ()
        word = request.stop_checker.stop_string if request else None
        full = len(prompt) + answer.tokens >= self._service.llm.context
        if answer.finish_reason == "length":
            stop_type = "limit"
        else:
            stop_type = "eos" if word is None else "word"
        tokens = self._service.llm.tokenizer
        found: dict[str, Any] = {
            "index": index,
            "content": answer.text if whole else "",
            "tokens": [s.token for s in answer.samples] if self._body.return_tokens else [],
            "id_slot": index,
            "stop": True,
            "model": self._service.name,
            "tokens_predicted": answer.tokens,
            "tokens_evaluated": len(prompt),
            "generation_settings": generation_settings(self._service, self._params, self._body),
            "prompt": tokens.decode(list(prompt), skip_special=False),
            "has_new_line": "\n" in answer.text,
            "truncated": full and stop_type == "limit",
            "stop_type": stop_type,
            "stopping_word": word or "",
            "tokens_cached": len(prompt) + answer.tokens,
            "timings": timings(answer),
            **(self._probabilities(answer.samples) if whole else {}),
        }
        return _chosen(found, self._fields) if self._fields else found

    def _probabilities(self, samples: Sequence[Sample]) -> dict[str, Any]:
        if self._params.logprobs is None or not samples:
            return {}
        tokenizer = self._service.llm.tokenizer

        processed = self._params.processed_logprobs

        def token(id: int, logprob: float | None) -> dict[str, Any]:
            data = tokenizer.token_bytes(id, special=True)
            text = token_text(tokenizer, id)
            known = {"id": id, "token": text, "bytes": list(data)}
            if processed:
                return {**known, "prob": min(exp(logprob or 0.0), 1.0)}
            return {**known, "logprob": logprob}

        top = "top_probs" if processed else "top_logprobs"
        return {
            "completion_probabilities": [
                {**token(s.token, s.logprob), top: [token(*each) for each in s.top]}
                for s in samples
            ]
        }


def _chosen(found: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The fields that are wanted; those within others by their paths."""
    out = {}
    for path in fields:
        value: Any = found
        for part in path.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            out[path] = value
    return out


def generation_settings(
    service: Service, params: SamplingParams, body: CompletionRequest | None = None
) -> dict[str, Any]:
    """How an answer is made, by llama-server's names; what only it has is off."""
    wanted = params.max_tokens
    limit = -1
    if body is not None:
        asked = (body.n_predict, body.max_tokens, body.max_completion_tokens)
        limit = next((n for n in asked if n is not None), -1)
    elif wanted is not None:
        limit = wanted
    biases: list[dict[str, Any]] = [
        {"token": id, "bias": bias if bias > -1e9 else None}
        for id, bias in params.logit_bias.items()
    ]
    if params.ignore_eos:
        biases += [{"token": id, "bias": None} for id in sorted(service.llm.tokenizer.stop_ids)]
    return {
        "seed": 0xFFFFFFFF if params.seed is None else params.seed,
        "temperature": params.temperature,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_n_sigma": -1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "typical_p": 1.0,
        "repeat_last_n": service.llm.context,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": -1,
        "dry_sequence_breakers": [],
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "stop": list(params.stop_strings),
        "max_tokens": limit,
        "n_predict": limit,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": params.ignore_eos,
        "stream": bool(body and body.stream),
        "logit_bias": biases,
        "n_probs": params.logprobs or 0,
        "min_keep": 0,
        "grammar": (body.grammar if body else None) or "",
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        "timings_per_token": bool(body and body.timings_per_token),
        "post_sampling_probs": params.processed_logprobs,
        "lora": [],
    }
