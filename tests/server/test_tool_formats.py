"""Calls in a model's words, however the text is cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from strata.server.parsers import Piece, Tool, ToolCall, ToolFormat, tool_format
from strata.server.parsers.hermes import Hermes
from strata.server.parsers.llama3 import Llama3
from strata.server.parsers.mistral import Mistral
from strata.server.parsers.plain import tell_of_tools

NAMES = ("add", "get.it")
ADD = ToolCall("add", {"a": 1, "b": "}</tool_call>]"})
GET = ToolCall("get.it", {})
ADD_JSON = json.dumps({"name": "add", "arguments": dict(ADD.arguments)})
GET_JSON = '{"arguments": {}, "name": "get.it"}'


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring texts as one; none that is empty."""
    out: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        elif piece != "":
            out.append(piece)
    return out


CASES: list[tuple[ToolFormat, str, list[Piece]]] = [
    (Hermes(), "just < text <tool", ["just < text <tool"]),
    (Hermes(), f"Well:\n<tool_call>\n{ADD_JSON}\n</tool_call>", ["Well:\n", ADD]),
    (
        Hermes(),
        f"<tool_call>{ADD_JSON}</tool_call>\n<tool_call>{GET_JSON}</tool_call>\nend",
        [ADD, GET, "end"],
    ),
    (Hermes(), f"<tool_call>{GET_JSON}", [GET]),
    (Hermes(), "<tool_call>{nothing</tool_call>", ["<tool_call>{nothing</tool_call>"]),
    (
        Hermes(),
        '<tool_call>{"name": "other"}</tool_call>',
        ['<tool_call>{"name": "other"}</tool_call>'],
    ),
    (Llama3(), "text {", ["text {"]),
    (Llama3(), '\n{"name": "get.it", "parameters": {}}', [GET]),
    (Llama3(), f"<|python_tag|>{ADD_JSON}; {GET_JSON}", [ADD, GET]),
    (Llama3(), '{"answer": 42}', ['{"answer": 42}']),
    (Llama3(), "<|python", ["<|python"]),
    (Llama3(), "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    (Mistral(), f"[TOOL_CALLS] [{ADD_JSON}, {GET_JSON}]", [ADD, GET]),
    (Mistral(), f"a[TOOL_CALLS]add[ARGS]{json.dumps(dict(ADD.arguments))}", ["a", ADD]),
    (Mistral(), "[TOOL_CALLS]get.it{}[TOOL_CALLS]get.it[CALL_ID]a1b2[ARGS]{}", [GET, GET]),
    (Mistral(), "[TOOL_CALLS]no[ARGS]{}", ["[TOOL_CALLS]no[ARGS]{}"]),
    (Mistral(), "[TOOL", ["[TOOL"]),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_any_cutting_gives_the_same(form: ToolFormat, text: str, expected: list[Piece]) -> None:
    draw = random.Random(0)
    for attempt in range(40):
        parser = form.parser(NAMES)
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(attempt))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        pieces = [piece for part in parts for piece in parser.push(part)]
        assert joined([*pieces, *parser.finish()]) == expected


def test_text_is_not_held_back_for_longer_than_needed() -> None:
    parser = Hermes().parser(NAMES)
    assert parser.push("a <b <tool") == ["a <b "]
    assert parser.push("ing") == ["<tooling"]
    parser = Llama3().parser(NAMES)
    assert parser.push("  ") == []
    assert parser.push("x") == ["  x"]
    assert parser.push("{") == ["{"]


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("<tool_call> {{ tools }}", Hermes),
        ("[TOOL_CALLS]", Mistral),
        ('<|python_tag|> "parameters"', Llama3),
        ("", Hermes),
    ],
)
def test_the_format_is_the_templates(template: str, kind: type) -> None:
    assert isinstance(tool_format(template), kind)


@pytest.mark.parametrize("closing", [{"additionalProperties": False, "unknownKeyword": 1}, {}])
@pytest.mark.parametrize("form", [Hermes(), Llama3(), Mistral()])
def test_a_forced_call_is_one_that_the_parser_finds(
    form: ToolFormat, closing: dict[str, Any]
) -> None:
    grammar = pytest.importorskip("strata.decode.grammar", reason="llguidance is not installed")
    letters = [b"", *(bytes([byte]) for byte in range(256))]

    class Letters:
        vocab_size = len(letters)
        bos_id = None
        stop_ids = frozenset([0])

        def token_bytes(self, id: int, *, special: bool = False) -> bytes:
            return letters[id]

        def encode(self, text: str) -> list[int]:
            return [byte + 1 for byte in text.encode()]

    # References are looked up from the root of a tool's own schema.
    parameters: Any = {
        "type": "object",
        "$defs": {"x": {"enum": ["y"]}},
        "properties": {"a": {"$ref": "#/$defs/x"}},
        "required": ["a"],
        **closing,
    }
    tools = [Tool("add", None, parameters), Tool("get.it", "Gets.", parameters)]
    position = (
        grammar.GrammarCompiler(Letters()).lark(form.grammar(tools, lambda name: None)).start()
    )
    draw = random.Random(1)
    text = b""
    while True:
        allowed = [id for id in range(len(letters)) if position.allowed()[id]]
        token = draw.choice(allowed)
        position.accept(token)
        if token == 0:
            break
        text += letters[token]
    parser = form.parser(NAMES)
    pieces = joined([*parser.push(text.decode()), *parser.finish()])
    (call,) = pieces
    assert isinstance(call, ToolCall)
    assert call.name in NAMES
    assert call.arguments == {"a": "y"}


def test_a_tool_that_names_no_arguments_has_none() -> None:
    for parameters in ({}, {"type": "object"}, {"type": "object", "properties": {}}):
        grammar = Hermes().grammar([Tool("now", None, parameters)], lambda name: None)
        assert '"additionalProperties": false' in grammar
    anything = Tool("put", None, {"type": "object", "additionalProperties": True})
    grammar = Hermes().grammar([anything], lambda name: None)
    assert '"additionalProperties": true' in grammar


def test_tools_in_words() -> None:
    tools = [Tool("add", "Adds.", {"type": "object"})]
    call = {"function": {"name": "add", "arguments": {}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    told = tell_of_tools(messages, tools)
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert '"add"' in told[0]["content"]
    assert Hermes().parser(["add"]).push(told[2]["content"]) == [ToolCall("add", {})]
    system = tell_of_tools([{"role": "system", "content": "Be kind."}, *messages], tools)
    assert system[0]["content"].startswith("Be kind.\n\n")
    assert len(system) == 4
