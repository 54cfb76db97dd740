"""Escapes of GBNF name characters, as in llama.cpp."""

from __future__ import annotations

import pytest

from strata.guard.gbnf import spelt

llguidance = pytest.importorskip("llguidance", reason="the extra strata-llm[server] is missing")


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (r'root ::= "\x41\xe9" [\x30-\x39]+', "Aé7"),
        (r'root ::= "\u00e9\u0041\x22\x5C"', 'éA"\\'),
        (r"root ::= [\u0041-\u005a]+ [^\x00-\x1f]", "ABc"),
        (r'root ::= "\U0001F600" [\U0001F600-\U0001F64F]', "😀😁"),
        (r'root ::= "\x0A\x00\x09"', "\n\0\t"),
        (r"root ::= [\u00e0-\u00ff\x2d\x5d\u005E]+", "àé-]^"),
        ('root ::= "a" # "\\x41" is none\n', "a"),
    ],
)
def test_an_escape_is_its_character(grammar: str, text: str) -> None:
    from llguidance import gbnf_to_lark

    tokens = llguidance.LLTokenizer("byte")
    lark = gbnf_to_lark.any_to_lark(spelt(grammar))
    source = llguidance.LLMatcher.grammar_from_lark(lark)
    data = text.encode()
    matcher = llguidance.LLMatcher(tokens, source, log_level=0)
    assert matcher.try_consume_tokens(tokens.tokenize_bytes(data)) == len(data), matcher.get_error()
    assert matcher.is_accepting()


def test_what_names_no_character_stays() -> None:
    for text in (r'root ::= "\n\\x41" [\]\\]', r'root ::= "\ud800"', r'root ::= "\xZZ"'):
        assert spelt(text) == text
