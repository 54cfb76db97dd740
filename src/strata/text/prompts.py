"""From what is asked to the tokens that a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strata.text.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text that is to be continued, with the tokens that the model wants at a beginning; names of
    special tokens in it become these tokens."""
    return tokenizer.encode(text, add_special=True, parse_special=True)


def chat_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """A conversation by the model's template, up to where the answer begins. ChatTemplateError if
    the model has no template, or its template refuses these messages."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tools=tools)
    return tokenizer.encode(text, parse_special=True)
