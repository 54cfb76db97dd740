"""Texts to the tokens that a model is given, where the books have room for encoding them.

A server has a share of its own for that, which its requests wait for.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from strata.errors import UsageError
from strata.memory import Ledger, LedgerError
from strata.text import Tokenizer

OWNER = "texts"
"""In the ledger: of ids that are kept, and of what encoding takes meanwhile."""


def encoded(
    tokenizer: Tokenizer,
    text: str,
    ledger: Ledger,
    *,
    add_special: bool = False,
    parse_special: bool = False,
    most: int | None = None,
) -> array[int]:
    """Token ids of ``text``, four bytes each; see ``Tokenizer.encode``. Not many more than ``most``
    are made. LedgerError if there is no room to encode its longest stretch that cannot be cut."""
    ids = array("i")
    try:
        with ledger.lent(OWNER, tokenizer.working_bytes(text)):
            for part in tokenizer.encode_parts(
                text, add_special=add_special, parse_special=parse_special
            ):
                ids.extend(part)
                if most is not None and len(ids) >= most:
                    break
    except LedgerError as error:
        raise LedgerError(f"a stretch of the text cannot be cut to be encoded: {error}") from None
    return ids


def prompt_ids(tokenizer: Tokenizer, text: str, ledger: Ledger) -> array[int]:
    """A text that is to be continued, with the tokens that the model wants at a beginning; names of
    special tokens in it become these tokens."""
    return encoded(tokenizer, text, ledger, add_special=True, parse_special=True)


def chat_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> array[int]:
    """A conversation by the model's template, up to where the answer begins. ChatTemplateError if
    the model has no template, or its template refuses these messages."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tools=tools)
    return encoded(tokenizer, text, ledger, parse_special=True)


def pair_ids(tokenizer: Tokenizer, text: str, ledger: Ledger, *, query: str) -> array[int]:
    """A pair of texts that a model scores: both with the tokens around a text, the end of the first
    twice (``<s> query </s></s> text </s>``, as RoBERTa was trained, arXiv:1907.11692)."""
    first, second = (encoded(tokenizer, t, ledger, add_special=True) for t in (query, text))
    around = tokenizer.encode("", add_special=True)
    if len(around) != 2 or around != [first[0], first[-1]]:
        raise UsageError("this model's tokenizer puts no tokens around a text: it cannot rank")
    return first + first[-1:] + second[1:]
