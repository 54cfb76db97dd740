"""Parameters and grammars of chat and completions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from strata.decode import SamplingParams
from strata.decode.constraint import Grammar
from strata.decode.params import LARGEST_SEED
from strata.errors import UsageError
from strata.server.logprobs import token_text
from strata.server.openai.requests import Common, ResponseFormat
from strata.server.parsers.base import parse_json
from strata.server.service import Service


def sampling_params(
    service: Service,
    body: Common,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    grammar: Grammar | None,
    logit_bias: Mapping[int, float] | None = None,
    processed_logprobs: bool = False,
) -> SamplingParams:
    """SamplingParams of a request, with the model's defaults."""
    return body.params(
        service.llm.sampling_defaults,
        choices=body.n or 1,
        repetition_penalty=body.repetition_penalty or body.repeat_penalty,
        min_tokens=body.min_tokens,
        stop_token_ids=body.stop_token_ids,
        seed=None if body.seed is None else body.seed & LARGEST_SEED,
        ignore_eos=bool(body.ignore_eos),
        max_tokens=max_tokens,
        logprobs=logprobs,
        processed_logprobs=processed_logprobs,
        logit_bias=logit_bias or body.logit_bias or {},
        grammar=grammar,
    )


async def grammar_of(
    service: Service, body: Common, form: ResponseFormat | None = None
) -> Grammar | None:
    """The compiled grammar of a request, if it has one; UsageError for two."""
    asked = {name: value for name, value in _forms(body, form).items() if value is not None}
    if len(asked) > 1:
        raise UsageError(
            f"only one form of the answer can be obeyed, not {len(asked)}: {', '.join(asked)}"
        )
    for name, value in asked.items():
        return await _compiled(service, name.rpartition(".")[2], value)
    return None


def _forms(body: Common, form: ResponseFormat | None) -> dict[str, Any]:
    """What a request may say of its answer's form, in every dialect; the last part of a name is
    what it is."""
    vllm = body.structured_outputs
    found: dict[str, Any] = {
        "grammar": body.grammar or None,
        "regex": body.regex,
        "json_schema.json": body.json_schema,
        "guided_json.json": body.guided_json,
        "guided_regex.regex": body.guided_regex,
        "guided_choice.choice": body.guided_choice,
        "guided_grammar.grammar": body.guided_grammar,
    }
    if vllm is not None:
        found |= {
            "structured_outputs.json": vllm.json_form,
            "structured_outputs.regex": vllm.regex,
            "structured_outputs.choice": vllm.choice,
            "structured_outputs.grammar": vllm.grammar,
            "structured_outputs.json_object": vllm.json_object or None,
        }
    if form is None or form.type == "text":
        return found
    if form.type == "json_object" and form.definition is None:
        return {**found, "response_format.json_object": True}
    schema = form.definition if form.json_schema is None else form.json_schema.definition
    if schema is None:
        raise UsageError("response_format json_schema needs a json_schema with a schema")
    return {**found, "response_format.json": schema}


async def _compiled(service: Service, kind: str, value: Any) -> Grammar:
    compiler = service.grammars
    if kind == "grammar":
        return await service.compiled(lambda: compiler.grammar(value))
    if kind == "regex":
        return await service.compiled(lambda: compiler.regex(value))
    if kind == "choice":
        choices = " | ".join(json.dumps(choice) for choice in dict.fromkeys(value))
        return await service.compiled(lambda: compiler.lark(f"start: {choices}"))
    if kind == "json_object":
        return await service.compiled(compiler.json_object)
    if isinstance(value, str):
        value = parse_json(value)
        if not isinstance(value, dict):
            raise UsageError("guided_json is no JSON schema: an object is expected")
    return await service.json_schema(value)


def limit_of(*limits: int | None) -> tuple[int | None, bool]:
    """The first limit of tokens that is said: None for as many as there is room for; and whether
    none is wanted at all."""
    limit = next((limit for limit in limits if limit is not None), None)
    return (None if limit is None or limit < 0 else max(limit, 1)), limit == 0


async def prompt_scores(service: Service, prompt: Sequence[int], top: int) -> list[Any]:
    """Log-probabilities of a prompt's tokens in vLLM's form: None for the first, then by id the
    token itself and the ``top`` most probable ones in its place."""
    tokenizer = service.llm.tokenizer
    found: list[Any] = [None]
    for sample in await service.prompt_samples(prompt, top):
        ranks = {id: rank for rank, (id, _) in enumerate(sample.top, 1)}
        entries = {sample.token: sample.logprob, **dict(sample.top)}
        found.append(
            {
                str(id): {
                    "logprob": logprob,
                    "rank": ranks.get(id),
                    "decoded_token": token_text(tokenizer, id),
                }
                for id, logprob in entries.items()
            }
        )
    return found
