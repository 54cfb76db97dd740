"""Calls that are forced by a grammar."""

from __future__ import annotations

import random
from typing import Any

import pytest

from strata.server.parsers import Tool
from support.tool_answers import FORMATS, PROMPT, joined


@pytest.mark.parametrize("closing", [{"additionalProperties": False, "unknownKeyword": 1}, {}])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_forced_call_is_one_that_the_parser_finds(
    name: str, special: bool, closing: dict[str, Any]
) -> None:
    grammar = pytest.importorskip("strata.decode.grammar", reason="llguidance is not installed")
    marks = [mark for mark in _MARKS if special]
    letters = [b"", *(bytes([byte]) for byte in range(256)), *(b"" for _ in marks)]

    class Letters:
        vocab_size = len(letters)
        bos_id = None
        stop_ids = frozenset([0])

        def token_bytes(self, id: int, *, special: bool = False) -> bytes:
            return marks[id - 257].encode() if special and id > 256 else letters[id]

        def encode(self, text: str) -> list[int]:
            return [byte + 1 for byte in text.encode()]

    def token_id(mark: str) -> int | None:
        return 257 + marks.index(mark) if mark in marks else None

    # References are looked up from the root of a tool's own schema.
    parameters: Any = {
        "type": "object",
        "$defs": {"x": {"enum": ["y"]}},
        "properties": {
            "a": {"$ref": "#/$defs/x"},
            "n": {"type": "array", "items": {"enum": [1]}, "minItems": 1, "maxItems": 1},
            "o": {"type": "boolean"},
        },
        "required": ["a", "n"],
        **closing,
    }
    tools = [Tool("add", None, parameters), Tool("get.it", "Gets.", parameters)]
    source = FORMATS[name].calls.grammar(tools, token_id)
    draw = random.Random(1)
    position = grammar.GrammarCompiler(Letters()).lark(source).start()
    text = b""
    while True:
        allowed = position.allowed()
        may = [id for id in range(len(letters)) if allowed[id]]
        # What a grammar does not bound ends soon.
        token = 0 if 0 in may else draw.choice(may)
        position.accept(token)
        if token == 0:
            break
        text += marks[token - 257].encode() if token > 256 else letters[token]
        assert len(text) < 2000
    parser = FORMATS[name].parser(tools, PROMPT, thinking=False)
    pieces = joined([*parser.push(text.decode(errors="replace")), *parser.finish()])
    ((called, arguments),) = pieces
    assert called in ("add", "get.it"), text
    if name == "gemma4":
        assert {"a", "n"} <= arguments.keys()
    else:
        assert arguments.pop("o", True) in (True, False)
        assert arguments == {"a": "y", "n": [1]}, text


_MARKS = [
    *("<|channel|>", "<|message|>", "<|constrain|>", "<|tool_call>", "<tool_call|>", '<|"|>'),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>", "[TOOL_CALLS]", "[ARGS]"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "<|tool_call|>", "<|tool_call_start|>"),
]


def test_a_tool_that_names_no_arguments_has_none() -> None:
    for parameters in ({}, {"type": "object"}, {"type": "object", "properties": {}}):
        for name in ("hermes", "harmony", "kimi"):
            tools = [Tool("now", None, parameters)]
            source = FORMATS[name].calls.grammar(tools, lambda name: None)
            assert '"additionalProperties": false' in source
    anything = Tool("put", None, {"type": "object", "additionalProperties": True})
    source = FORMATS["hermes"].calls.grammar([anything], lambda name: None)
    assert '"additionalProperties": true' in source
