"""Calls that are forced by a grammar."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from strata.server.parsers import Tool
from support.tool_answers import FORMATS, PROMPT, joined


class Letters:
    """A tokenizer of bytes and of ``marks``, which are special."""

    bos_id = None
    stop_ids = frozenset([0])

    def __init__(self, marks: Sequence[str] = ()) -> None:
        self._marks = marks
        self.vocab_size = 257 + len(marks)

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        if id > 256:
            return self._marks[id - 257].encode() if special else b""
        return bytes([id - 1]) if id else b""

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]


@pytest.mark.parametrize("closing", [{"additionalProperties": False, "unknownKeyword": 1}, {}])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_forced_call_is_one_that_the_parser_finds(
    name: str, special: bool, closing: dict[str, Any]
) -> None:
    grammar = pytest.importorskip("strata.decode.grammar", reason="llguidance is not installed")
    marks = [mark for mark in _MARKS if special]
    letters = Letters(marks)

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
    position = grammar.GrammarCompiler(letters).lark(source).start()
    text = b""
    while True:
        allowed = position.allowed()
        may = [id for id in range(letters.vocab_size) if allowed[id]]
        # What a grammar does not bound ends soon.
        token = 0 if 0 in may else draw.choice(may)
        position.accept(token)
        if token == 0:
            break
        text += letters.token_bytes(token, special=True)
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


DSML = "｜DSML｜"
ENDS = {
    **dict.fromkeys(("qwen-coder", "seed"), "\n</parameter>\n"),
    **dict.fromkeys(("dsml", "dsml4"), f"</{DSML}parameter>\n"),
    **{"glm": "</arg_value>\n", "minimax2": "</parameter>\n", "gemma4": '<|"|>'},
}
"""What is behind a text, where it is not a JSON string."""

TEXT = 'one "two" <b>\n{}, three\n'


@pytest.mark.parametrize("name", FORMATS)
def test_a_forced_call_may_have_any_text(name: str) -> None:
    """Text as the format writes it is allowed byte for byte, up to what ends it."""
    grammar = pytest.importorskip("strata.decode.grammar", reason="llguidance is not installed")
    properties = {"s": {"type": "string"}, "t": {"type": "string"}}
    tool = Tool("add", None, {"type": "object", "properties": properties, "required": ["s", "t"]})
    source = FORMATS[name].calls.grammar([tool], lambda mark: None)
    position = grammar.GrammarCompiler(Letters()).lark(source).start()
    # Gemma's strings have no escapes.
    values = [TEXT.replace("<", "") if name == "gemma4" else TEXT, "x"]
    said = b""
    left = list(values)
    while True:
        allowed = position.allowed()
        may = [id for id in range(257) if allowed[id]]
        if may == [0]:
            break
        written = bytes(id - 1 for id in may)
        if len(may) > 1:
            # Inside a value.
            value = left.pop(0)
            end = ENDS.get(name)
            text = json.dumps(value, ensure_ascii=False)[1:] if end is None else value + end
            written = text.encode()
        for byte in written:
            assert position.allowed()[byte + 1], (said, written)
            position.accept(byte + 1)
            said += bytes([byte])
    parser = FORMATS[name].parser([tool], PROMPT, thinking=False)
    pieces = joined([*parser.push(said.decode()), *parser.finish()])
    assert pieces == [("add", dict(zip("st", values, strict=True)))]
