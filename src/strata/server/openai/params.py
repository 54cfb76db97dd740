"""Parameters and grammars of chat and completions."""

from __future__ import annotations

from strata.decode import SamplingParams
from strata.decode.constraint import Grammar
from strata.decode.params import LARGEST_SEED
from strata.errors import UsageError
from strata.server.openai.requests import ResponseFormat, Sampling
from strata.server.service import Service


def sampling_params(
    body: Sampling, *, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None
) -> SamplingParams:
    """SamplingParams of a request, with OpenAI's defaults: temperature and top_p are 1."""
    return SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        seed=None if body.seed is None else body.seed & LARGEST_SEED,
        stop=body.stop or (),
        ignore_eos=bool(body.ignore_eos),
        max_tokens=max_tokens,
        logprobs=logprobs,
        logit_bias=body.logit_bias or {},
        grammar=grammar,
    )


async def grammar_of(
    service: Service, body: Sampling, form: ResponseFormat | None = None
) -> Grammar | None:
    """The compiled grammar of a request, if it has one; UsageError for two."""
    kind = None if form is None or form.type == "text" else form.type
    asked = [name for name in (kind, body.grammar, body.regex) if name is not None]
    if len(asked) > 1:
        raise UsageError("only one of response_format, grammar and regex can be obeyed")
    if not asked:
        return None
    compiler = service.grammars
    if body.grammar is not None:
        text = body.grammar
        return await service.off_loop(lambda: compiler.grammar(text))
    if body.regex is not None:
        expression = body.regex
        return await service.off_loop(lambda: compiler.regex(expression))
    if kind == "json_object":
        return await service.off_loop(compiler.json_object)
    if form is None or form.json_schema is None:
        raise UsageError("response_format json_schema needs a json_schema with a schema")
    schema = form.json_schema.definition
    return await service.off_loop(lambda: compiler.json_schema(schema))
