"""Grammars by llguidance: JSON schemas, regular expressions, and context-free grammars.

It walks a vocabulary's bytes beside an Earley parser, so that a mask takes well under a
millisecond: https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import llguidance
import numpy as np
from numpy.typing import NDArray

from strata.decode.constraint import Constraint
from strata.decode.schemas import LAYOUT, closed
from strata.errors import UsageError

# A byte that no UTF-8 text holds sets the names of special tokens apart from text.
_SPECIAL = b"\xff"


class GrammarTokenizer(Protocol):
    """What grammars need of ``strata.text.Tokenizer``."""

    vocab_size: int
    bos_id: int | None
    stop_ids: frozenset[int]

    def token_bytes(self, id: int, *, special: bool = False) -> bytes: ...

    def encode(self, text: str) -> list[int]: ...


class GrammarError(UsageError):
    """A schema, expression or grammar that does not parse or that is not supported."""


class GrammarCompiler:
    """Makes grammars over one vocabulary. Compiling may take a second for a hard one."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        if not self._tokenizer.stop_ids:
            raise GrammarError("this model has no end token, which an answer by a grammar needs")
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer)),
            eos_token=sorted(self._tokenizer.stop_ids),
        )

    def json_object(self) -> TokenGrammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> TokenGrammar:
        """JSON on one line that is valid under ``schema``, as ``strata.decode.schemas`` reads it;
        a keyword that is not supported is an error."""
        text = json.dumps(closed(schema))
        layout: Any = dict(LAYOUT)
        return self._compile(llguidance.LLMatcher.grammar_from_json_schema(text, layout))

    def regex(self, expression: str) -> TokenGrammar:
        """Text that ``expression`` (Rust's syntax, no look-around) matches as a whole."""
        return self._compile(llguidance.LLMatcher.grammar_from_regex(expression))

    def grammar(self, text: str) -> TokenGrammar:
        """A grammar in llguidance's dialect of Lark, or in llama.cpp's GBNF."""
        from llguidance import gbnf_to_lark

        try:
            lark = gbnf_to_lark.any_to_lark(text)
        except Exception as error:
            # Some of its errors have no type of their own.
            raise GrammarError(f"the grammar is not usable: {error}") from None
        return self.lark(lark)

    def lark(self, text: str) -> TokenGrammar:
        """A grammar in llguidance's dialect of Lark."""
        return self._compile(llguidance.LLMatcher.grammar_from_lark(text))

    def _compile(self, source: str) -> TokenGrammar:
        matcher = llguidance.LLMatcher(self._vocabulary, source, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split("<state>")[0].split())
            raise GrammarError(f"the grammar is not usable: {reason[:400]}")
        return TokenGrammar(matcher, self._tokenizer)


class TokenGrammar:
    """See ``strata.decode.constraint.Grammar``."""

    def __init__(self, matcher: llguidance.LLMatcher, tokenizer: GrammarTokenizer) -> None:
        self._matcher = matcher
        self._size = tokenizer.vocab_size
        self._ends = sorted(tokenizer.stop_ids)

    def start(self) -> Constraint:
        """The beginning of an answer."""
        return _Position(self._matcher.deep_copy(), self._size, self._ends)


class _Position:
    def __init__(self, matcher: llguidance.LLMatcher, size: int, ends: Sequence[int]) -> None:
        self._matcher = matcher
        self._size = size
        self._ends = ends

    def allowed(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._size, bitorder="little").astype(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            # A grammar that outgrows the parser's limits ends its own answer and harms no other.
            allowed[:] = False
            allowed[self._ends] = True
        return allowed

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def copy(self) -> Constraint:
        return _Position(self._matcher.deep_copy(), self._size, self._ends)


class _Vocabulary:
    """The attributes that llguidance looks for."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        texts = [tokenizer.token_bytes(id) for id in ids]
        self.special_token_ids = [id for id in ids if not texts[id]]
        self.tokens = [
            text or _SPECIAL + tokenizer.token_bytes(id, special=True)
            for id, text in enumerate(texts)
        ]
        self.eos_token_id = min(tokenizer.stop_ids)
        self.bos_token_id = tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))
