"""What llama-server's clients send."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field

from strata.decode.params import LARGEST_BIAS
from strata.errors import UsageError
from strata.server.bodies import Asked, Lenient
from strata.server.openai.requests import MOST_BIASES, ChatRequest, Common, Limit
from strata.server.service import Service
from strata.server.settings import Unknown

_NUMBER = re.compile("-?[0-9]{1,10}")


class PromptObject(Lenient):
    """A prompt as an object. Images, which it may have elsewhere, cannot be read here."""

    prompt_string: str
    multimodal_data: list[Any] | None = None


Mixed = Annotated[list[int | str], Field(fail_fast=True)]
Prompts = (
    str | PromptObject | Annotated[list[int | str | PromptObject | Mixed], Field(fail_fast=True)]
)
"""A text, token ids, both mixed, or a list of these."""


class CompletionRequest(Common):
    """``POST /completion``."""

    on_unknown: ClassVar[Unknown] = "warn"

    prompt: Prompts
    n_probs: Annotated[int, Field(ge=0, le=100)] | None = None
    post_sampling_probs: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    logit_bias: Any = None
    return_tokens: bool | None = None
    response_fields: Annotated[list[str], Field(max_length=64)] | None = None
    n_cmpl: Annotated[int, Field(ge=1, le=1024)] | None = None
    max_completion_tokens: Limit | None = None


class ExtraFile(Lenient):
    """A further file of the project; its name is told to models that know of names."""

    filename: str = "tmp"
    text: str


class InfillRequest(CompletionRequest):
    """``POST /infill``."""

    prompt: str = ""
    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[ExtraFile], Field(max_length=256, fail_fast=True)] | None = None


class TemplateRequest(ChatRequest):
    """``POST /apply-template``."""

    on_unknown: ClassVar[Unknown] = "warn"


class TokenizeRequest(Asked):
    """Text to tokens; see ``Tokenizer.encode`` for the first two choices."""

    on_unknown: ClassVar[Unknown] = "warn"

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


async def biases_of(service: Service, given: Any) -> dict[int, float]:
    """Biases of tokens: a list of pairs or an object, of ids or texts, with numbers or false for
    never."""
    if given is None:
        return {}
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list) or len(pairs) > MOST_BIASES:
        raise UsageError(f"logit_bias: a list of at most {MOST_BIASES} pairs is expected")
    found: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UsageError("logit_bias: each entry is a token, or a text, with its bias")
        who, bias = pair
        if bias is False:
            bias = -1e9
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise UsageError("logit_bias: a bias is a number, or false")
        if not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
            raise UsageError(f"logit_bias: a bias is at most {LARGEST_BIAS:g}, up or down")
        if isinstance(who, str) and not _NUMBER.fullmatch(who):
            ids = (await service.tokenize(who, parse_special=True)).tolist()
        elif isinstance(who, int | str) and int(who) >= 0:
            ids = [int(who)]
        else:
            raise UsageError("logit_bias: a token is its id, or a text")
        found.update(dict.fromkeys(ids, float(bias)))
    return found
