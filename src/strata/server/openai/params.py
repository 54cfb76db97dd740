"""Parameters and grammars of chat and completions."""

from __future__ import annotations

from strata.decode import SamplingParams
from strata.decode.constraint import Grammar
from strata.decode.params import LARGEST_SEED
from strata.errors import UsageError
from strata.server.openai.requests import Common, ResponseFormat
from strata.server.service import Service

DEFAULTS = SamplingParams(temperature=1.0)


def sampling_params(
    body: Common, *, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None
) -> SamplingParams:
    """SamplingParams of a request, with OpenAI's defaults."""
    return body.params(
        DEFAULTS,
        repetition_penalty=body.repetition_penalty or 1.0,
        seed=None if body.seed is None else body.seed & LARGEST_SEED,
        ignore_eos=bool(body.ignore_eos),
        max_tokens=max_tokens,
        logprobs=logprobs,
        logit_bias=body.logit_bias or {},
        grammar=grammar,
    )


async def grammar_of(
    service: Service, body: Common, form: ResponseFormat | None = None
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
        return await service.compiled(lambda: compiler.grammar(text))
    if body.regex is not None:
        expression = body.regex
        return await service.compiled(lambda: compiler.regex(expression))
    if kind == "json_object":
        return await service.compiled(compiler.json_object)
    if form is None or form.json_schema is None:
        raise UsageError("response_format json_schema needs a json_schema with a schema")
    return await service.json_schema(form.json_schema.definition)
