"""Texts to the tokens that a model is given, where the books have room for encoding them.

A server has a share of its own for that, which its requests wait for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from sys import getsizeof
from typing import TYPE_CHECKING, Any

from strata.errors import UsageError
from strata.memory import Ledger, LedgerError
from strata.records import dataclass
from strata.text import Tokenizer

if TYPE_CHECKING:
    from strata.plan import Workload

OWNER = "texts"
"""In the ledger: of ids that are kept, and of what encoding takes meanwhile."""

_AROUND = 512

_RENDERED = 3
"""Copies of a conversation's texts while a template puts them together."""

_SOME_IDS = 1 << 12
"""Ids that are entered at a time."""


@dataclass(frozen=True)
class TextWorkload:
    """The Workload of texts. ``made`` gives it, with the model's tokenizer and books that have the
    budget's room for encoding; ``at_most`` is what it comes to at most, from which a budget is
    named that has no room for the tokenizer."""

    at_most: Workload
    made: Callable[[Tokenizer, Ledger], Workload]


def most_tokens(nbytes: int) -> int:
    """Tokens that a text of so many bytes has at most, with a usual template around it."""
    return nbytes + _AROUND


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
    are made. LedgerError if there is no room for them, for the text between two names of special
    tokens, or to encode its longest stretch that cannot be cut."""
    ids = array("i")
    with ExitStack() as held:
        try:
            held.enter_context(ledger.lent(OWNER, tokenizer.working_bytes(text)))
        except LedgerError as error:
            raise LedgerError(
                f"a stretch of the text cannot be cut to be encoded: {error}"
            ) from None
        held.enter_context(ledger.lent(OWNER, getsizeof(text)))
        room = 0
        for part in tokenizer.encode_parts(
            text, add_special=add_special, parse_special=parse_special
        ):
            while len(ids) + len(part) > room:
                # An array that grows may be there twice.
                held.enter_context(ledger.lent(OWNER, 2 * _SOME_IDS * ids.itemsize))
                room += _SOME_IDS
            ids.extend(part)
            if most is not None and len(ids) >= most:
                break
    return ids


def prompt_ids(
    tokenizer: Tokenizer, text: str, ledger: Ledger, most: int | None = None
) -> array[int]:
    """A text that is to be continued, with the tokens that the model wants at a beginning; names of
    special tokens in it become these tokens."""
    return encoded(tokenizer, text, ledger, add_special=True, parse_special=True, most=most)


def chat_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    ledger: Ledger,
    tools: Sequence[Mapping[str, Any]] | None = None,
    most: int | None = None,
) -> array[int]:
    """A conversation by the model's template, up to where the answer begins. ChatTemplateError if
    the model has no template, or its template refuses these messages."""
    with ledger.lent(OWNER, _RENDERED * _text_bytes(messages)):
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tools=tools, **tokenizer.usual_variables(tools)
        )
        return encoded(tokenizer, text, ledger, parse_special=True, most=most)


def _text_bytes(value: object) -> int:
    """Of all texts within messages."""
    if isinstance(value, str):
        return getsizeof(value)
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return 0
    return sum(map(_text_bytes, value))


def pair_ids(
    tokenizer: Tokenizer, text: str, ledger: Ledger, *, query: str, most: int | None = None
) -> array[int]:
    """A pair of texts that a model scores: by the file's template for pairs, else both with the
    tokens around a text, the end of the first twice (``<s> query </s></s> text </s>``, as RoBERTa
    was trained, arXiv:1907.11692). Of a text with more than ``most`` tokens only so many are made,
    and what comes back is no whole pair but has ``most`` or more."""
    template = tokenizer.chat_templates.get("rerank")
    if template is not None:
        # No Jinja: llama.cpp puts the texts in so.
        before, _, after = template.source.partition("{query}")
        between, _, end = after.partition("{document}")
        whole = f"{before}{query}{between}{text}{end}"
        return encoded(tokenizer, whole, ledger, parse_special=True, most=most)
    first, second = (
        encoded(tokenizer, t, ledger, add_special=True, most=most) for t in (query, text)
    )
    if most is not None and max(len(first), len(second)) >= most:
        return first + second
    around = tokenizer.encode("", add_special=True)
    if len(around) != 2 or around != [first[0], first[-1]]:
        raise UsageError("this model's tokenizer puts no tokens around a text: it cannot rank")
    return first + first[-1:] + second[1:]
