"""Calls and thoughts in a model's words, however the text is cut."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from strata.server.parsers import AnswerFormat, Piece, Thought, Tool, ToolCall, answer_format
from strata.server.parsers.base import CallBegin, CallDelta
from strata.server.parsers.deepseek import DeepSeek
from strata.server.parsers.gemma4 import Gemma4
from strata.server.parsers.glm import Glm
from strata.server.parsers.harmony import Harmony
from strata.server.parsers.hermes import Hermes
from strata.server.parsers.invoke import Invoke
from strata.server.parsers.kimi import Kimi
from strata.server.parsers.lfm2 import Lfm2
from strata.server.parsers.llama3 import Llama3
from strata.server.parsers.mistral import Mistral
from strata.server.parsers.plain import tell_of_tools, with_calls_written
from strata.server.parsers.qwen_coder import QwenCoder

NOTHING: dict[str, Any] = {"type": "object"}
ADD = Tool(
    "add",
    None,
    {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "string"},
            "c": {},
            "d": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "e": {"$ref": "#/$defs/e"},
        },
        "$defs": {"e": {"enum": ["1", "true"]}},
    },
)
TOOLS = (ADD, Tool("get.it", None, NOTHING))

TEMPLATES = {
    "hermes": "tools tool_calls <tool_call>",
    "granite3": "tools <|tool_call|> <think></think> and write your response between "
    "<response></response>",
    "nemotron": "tools <TOOLCALL>",
    "minimax1": "tools <tool_calls>",
    "llama3": '<|python_tag|> "parameters"',
    "mistral": "[TOOL_CALLS] [THINK] [/THINK]",
    "qwen-coder": "<tool_call> <function= <parameter= <think> </think>",
    "glm": "<tool_call> <arg_key> <think> </think>",
    "deepseek": "<｜tool▁call▁begin｜> <think> </think>",
    "deepseek3": "<｜tool▁call▁begin｜> ```json",
    "dsml": "｜DSML｜ function_calls </think>",
    "dsml4": "｜DSML｜ tool_calls </think>",
    "minimax2": "<minimax:tool_call> <think> </think>",
    "kimi": "<|tool_call_begin|> <think> </think>",
    "lfm2": "<|tool_list_start|>",
    "gemma4": "<|tool_call>call:",
    "harmony": "<|channel|> <|message|>",
    "qwen3": "<tool_call> <think> </think>",
}
FORMATS = {name: answer_format(template) for name, template in TEMPLATES.items()}

PROMPT = "<|start|>assistant"
"""At whose end answers begin."""

HARD = {"a": 1, "b": '}</tool_call>] \\ "\n<|end|>', "c": [{"x": [None, True]}, "é😀"]}
HARD_JSON = json.dumps(HARD)
ADD_JSON = json.dumps({"name": "add", "arguments": HARD})
GET_JSON = '{"arguments": {}, "name": "get.it"}'


def call(name: str, arguments: Any) -> tuple[str, Any]:
    return (name, arguments)


GET = call("get.it", {})
BOTH = [call("add", HARD), GET]
DSML = "｜DSML｜"

# Names of formats, the answer, and what is in it: text, thoughts in a list, calls in pairs, whose
# arguments are text where they are no object.
CASES: list[tuple[str, str, list[Any]]] = [
    ("hermes", "just < text <tool", ["just < text <tool"]),
    ("hermes", f"Well:\n<tool_call>\n{ADD_JSON}\n</tool_call>", ["Well:\n", BOTH[0]]),
    ("hermes", f"\n\n<tool_call>\n{ADD_JSON}\n</tool_call>\n", [BOTH[0]]),
    (
        "hermes",
        f"<tool_call>{ADD_JSON}</tool_call>\n<tool_call>{GET_JSON}</tool_call>\nend",
        [*BOTH, "end"],
    ),
    ("hermes", f"<tool_call>{GET_JSON}", [GET]),
    ("hermes", f"<tool_call>[{ADD_JSON}, {GET_JSON}]</tool_call>", BOTH),
    ("hermes", "<tool_call>{nothing</tool_call>", ["<tool_call>{nothing</tool_call>"]),
    ("hermes", "<tool_call> <tool_call>" + GET_JSON, ["<tool_call> ", GET]),
    ("hermes", '<tool_call>{"name": "no"}</tool_call>', ['<tool_call>{"name": "no"}</tool_call>']),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}', None),
    ("hermes", '<tool_call>{"id": [1, {}], "x": 1e3, "name": "get.it"}</tool_call>', [GET]),
    ("hermes", '<tool_call>{"name": "get.it", "arguments": null}</tool_call>', [GET]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', [call("add", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {}, "id": 7}</tool_call>.', None),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1', [call("add", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"b": "\\', None),
    ("hermes", '<tool_call>{"name": "add", "argu', ['<tool_call>{"name": "add", "argu']),
    (
        "hermes",
        '<tool_call>{"name": "add", "arguments": {"a": 1</tool_call>so',
        [call("add", '{"a": 1'), "so"],
    ),
    ("granite3", f"<|tool_call|>[{ADD_JSON}, {GET_JSON}]", BOTH),
    ("granite3", "<think>hm</think><response>So.</response>", [["hm"], "So."]),
    ("nemotron", f"<TOOLCALL>[{ADD_JSON}, {GET_JSON}]</TOOLCALL>", BOTH),
    ("minimax1", f"<tool_calls>\n{ADD_JSON}\n{GET_JSON}\n</tool_calls>", BOTH),
    ("llama3", "text {", ["text {"]),
    ("llama3", '\n{"name": "get.it", "parameters": {}}', [GET]),
    ("llama3", f"<|python_tag|>{ADD_JSON}; {GET_JSON}", BOTH),
    ("llama3", '{"answer": 42}', ['{"answer": 42}']),
    ("llama3", "<|python", ["<|python"]),
    ("llama3", "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    (
        "llama3",
        '<|python_tag|>add.call(a=-1, b="it\'s")',
        [call("add", {"a": -1, "b": "it's"})],
    ),
    ("mistral", f"[TOOL_CALLS] [{ADD_JSON}, {GET_JSON}]", BOTH),
    ("mistral", f"a[TOOL_CALLS]add[ARGS]{HARD_JSON}", ["a", BOTH[0]]),
    ("mistral", "[TOOL_CALLS]get.it{}[TOOL_CALLS]get.it[CALL_ID]a1b2[ARGS]{}", [GET, GET]),
    ("mistral", "[TOOL_CALLS]no[ARGS]{}", ["[TOOL_CALLS]no[ARGS]{}"]),
    ("mistral", "[TOOL", ["[TOOL"]),
    ("mistral", "[THINK]hm[/THINK]So [THINK]", [["hm"], "So [THINK]"]),
    (
        "qwen-coder",
        "Well.\n<tool_call>\n<function=add>\n<parameter=a>\n-1\n</parameter>\n<parameter=b>\n\n"
        'x "y"\n</parameter\n\n</parameter>\n<parameter=c>\n{"k": [1]}\n</parameter>\n'
        "<parameter=d>\nnull\n</parameter>\n<parameter=e>\ntrue\n</parameter>\n"
        "</function>\n</tool_call>\n",
        [
            "Well.\n",
            call(
                "add",
                {"a": -1, "b": '\nx "y"\n</parameter\n', "c": {"k": [1]}, "d": None, "e": "true"},
            ),
        ],
    ),
    ("qwen-coder", "<function=get.it>\n</function>", [GET]),
    (
        "qwen-coder",
        "<tool_call><function=add><parameter=a>one</parameter><parameter=c>True</parameter>"
        "</function></tool_call><tool_call><function=get.it></function></tool_call>",
        [call("add", {"a": "one", "c": True}), GET],
    ),
    (
        "qwen-coder",
        "<think>hm\n<tool_call>\n<function=get.it>\n</tool_call>",
        [["hm"], GET],
    ),
    ("qwen-coder", "<tool_call>\n<function=add>\n<parameter=b>\nx", [call("add", '{"b": "x')]),
    ("qwen-coder", "<tool_call>\n<function=no>\nx", ["<tool_call>\n<function=no>\nx"]),
    ("qwen-coder", "#include <functional>", ["#include <functional>"]),
    (
        "glm",
        "<think>hm</think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>12</arg_value>\n"
        "<arg_key>b</arg_key>\n<arg_value>12\n</arg_value>\n</tool_call><tool_call>get.it</tool_call>",
        [["hm"], call("add", {"a": 12, "b": "12\n"}), GET],
    ),
    ("glm", "<tool_call>adder\n<arg_key>", ["<tool_call>adder\n<arg_key>"]),
    (
        "glm",
        "<tool_call>add<arg_key>d</arg_key><arg_value>nul",
        [call("add", '{"d": ')],
    ),
    (
        "deepseek",
        f"So<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{HARD_JSON}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>get.it<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ["So", *BOTH],
    ),
    (
        "deepseek3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        f"{HARD_JSON}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get.it\n"
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        BOTH,
    ),
    (
        "dsml",
        f'hm</think>So.\n\n<{DSML}function_calls>\n<{DSML}invoke name="add">\n'
        f'<{DSML}parameter name="a" string="false">1</{DSML}parameter>\n'
        f'<{DSML}parameter name="b" string="true">1 "x"</{DSML}parameter>\n</{DSML}invoke>\n'
        f'<{DSML}invoke name="get.it">\n</{DSML}invoke>\n</{DSML}function_calls>',
        ["hm</think>So.\n\n", call("add", {"a": 1, "b": '1 "x"'}), GET],
    ),
    ("dsml4", f'<{DSML}tool_calls><{DSML}invoke name="get.it"></{DSML}invoke>', [GET]),
    (
        "minimax2",
        '<minimax:tool_call>\n<invoke name="add">\n<parameter name="a">3</parameter>\n'
        '<parameter name="b">3</parameter>\n</invoke>\n<invoke name="get.it">\n</invoke>\n'
        "</minimax:tool_call>",
        [call("add", {"a": 3, "b": "3"}), GET],
    ),
    (
        "kimi",
        "<think>hm<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
        f"<|tool_call_argument_begin|>{HARD_JSON}<|tool_call_end|><|tool_call_begin|>"
        "functions.get.it:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        [["hm"], *BOTH],
    ),
    (
        "lfm2",
        '<|tool_call_start|>[add(a=1, b="\\"x\\" \\u00e9\\n", c={\'k\': (1, None), "l": []}), '
        "get.it()]<|tool_call_end|>So",
        [call("add", {"a": 1, "b": '"x" é\n', "c": {"k": [1, None], "l": []}}), GET, "So"],
    ),
    ("lfm2", f"<|tool_call_start|>[{ADD_JSON}]<|tool_call_end|>", [BOTH[0]]),
    ("lfm2", "<|tool_call_start|>[no()]<|tool_call_end|>", None),
    ("lfm2", "<|tool_call_start|>[add(a=tr", [call("add", '{"a": ')]),
    ("lfm2", "<|tool_call_start|>[add(a}]<|tool_call_end|>.", None),
    (
        "gemma4",
        '<|channel>thought\nhm\n<channel|>So <|tool_call>call:add{a:-1.5,b:<|"|>{"x"}<|"|>,'
        'c:{k k:[true,null,<|"|><|"|>],null:1}}<tool_call|><|tool_call>call:get.it{}<tool_call|>'
        "<|tool_response>",
        [
            ["hm"],
            "So ",
            call("add", {"a": -1.5, "b": '{"x"}', "c": {"k k": [True, None, ""], "null": 1}}),
            GET,
        ],
    ),
    ("gemma4", "<|tool_call>call:no{}<tool_call|>", None),
    (
        "harmony",
        "<|channel|>analysis<|message|>hm <|end|><|start|>assistant<|channel|>commentary<|message|>"
        "So: <|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json"
        f"<|message|>{HARD_JSON}<|call|>",
        [["hm "], "So: ", BOTH[0]],
    ),
    ("harmony", " to=functions.get.it<|channel|>commentary json<|message|>{}", [GET]),
    ("harmony", "<|channel|>final<|message|>So.<|return|>", ["So."]),
    ("harmony", "<|channel|>commentary to=python<|message|>x = 1<|end|>", [["x = 1"]]),
    ("harmony", "<|channel|>ana", []),
    ("harmony", "plain <|text", ["plain <|text"]),
    ("harmony", '<|channel|>commentary to=functions.add<|message|>{"a', [call("add", '{"a')]),
    ("qwen3", "<think>\nHm, 2 < 3.\n</think>\n\nYes.\n", [["Hm, 2 < 3."], "Yes.\n"]),
    ("qwen3", f"<think><tool_call>{GET_JSON}</think>", [[f"<tool_call>{GET_JSON}"]]),
]


def joined(pieces: Sequence[Piece]) -> list[Any]:
    """As in CASES. A call has a beginning, and says in pieces what it says at its end."""
    out: list[Any] = []
    begun: CallBegin | None = None
    arguments = ""
    for piece in pieces:
        if isinstance(piece, CallBegin):
            assert begun is None
            begun, arguments = piece, ""
        elif isinstance(piece, CallDelta):
            assert begun is not None
            assert piece.text
            arguments += piece.text
        elif isinstance(piece, ToolCall):
            assert begun is not None
            assert (begun.name, begun.id, arguments) == (piece.name, piece.id, piece.arguments)
            parsed = piece.parsed
            out.append((piece.name, piece.arguments if parsed is None else parsed))
            begun = None
        else:
            assert begun is None
            text = piece.text if isinstance(piece, Thought) else piece
            assert text
            if isinstance(piece, Thought):
                if out and isinstance(out[-1], list):
                    text = out.pop()[0] + text
                out.append([text])
            elif out and isinstance(out[-1], str):
                out[-1] += text
            else:
                out.append(text)
    assert begun is None
    return out


def read(form: AnswerFormat, parts: Sequence[str]) -> list[Any]:
    parser = form.parser(TOOLS, PROMPT)
    pieces = [piece for part in parts for piece in parser.push(part)]
    return joined([*pieces, *parser.finish()])


def cut(text: str, cuts: Sequence[int]) -> list[str]:
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_what_is_in_an_answer(name: str, text: str, expected: list[Any] | None) -> None:
    found = read(FORMATS[name], [text])
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize("name", FORMATS)
def test_any_cutting_gives_the_same(name: str) -> None:
    """Of every answer in its own format, and of every beginning of it; of others for a few."""
    draw = random.Random(name)
    form = FORMATS[name]
    for other, text, _ in CASES:
        if other != name and draw.random() < 0.8:
            continue
        whole = read(form, [text])
        assert read(form, list(text)) == whole
        for attempt in range(4):
            cuts = sorted(draw.randrange(len(text) + 1) for _ in range(attempt + 1))
            assert read(form, cut(text, cuts)) == whole
            end = draw.randrange(len(text) + 1)
            assert read(form, list(text[:end])) == read(form, [text[:end]])


_PARTS = [
    *("<tool_call>", "</tool_call>", "<function=add>", "<parameter=b>", "\n</parameter>", "{", "}"),
    *(
        '"',
        "\\",
        "[",
        "]",
        ":",
        ",",
        "\n",
        " ",
        "add",
        '{"name": "add", "arguments": ',
        "<arg_key>",
    ),
    *("</arg_key>", "<arg_value>", "</arg_value>", "a", "<|channel|>", "analysis", "<|message|>"),
    *("commentary to=functions.add", "<|end|>", "<|start|>", "assistant", "<|call|>", "<|channel>"),
    *(
        "thought",
        "<channel|>",
        "<|tool_call>call:add{",
        "<tool_call|>",
        '<|"|>',
        "true",
        "'",
        "=",
        "(",
    ),
    *(
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "add(b=",
        ")",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<think>",
    ),
    *("</think>", "<|tool_call_begin|>", "functions.add:0", "<|tool_call_argument_begin|>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<minimax:tool_call>", '<invoke name="add">', "<"),
    *('<parameter name="b">', "</parameter>", "</invoke>", "<|python_tag|>", "add.call(", "1", "é"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_any_markup_ends_and_is_cut_anywhere(name: str) -> None:
    draw = random.Random(name)
    for _ in range(40):
        text = "".join(draw.choices(_PARTS, k=draw.randrange(1, 25)))
        whole = read(FORMATS[name], [text])
        assert read(FORMATS[name], list(text)) == whole, text
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(3))
        assert read(FORMATS[name], cut(text, cuts)) == whole, text


def test_arguments_come_while_they_are_written() -> None:
    for name, text, found in CASES:
        if name in ("lfm2", "gemma4") or not any(item == BOTH[0] for item in found or ()):
            continue
        parser = FORMATS[name].parser(TOOLS, PROMPT)
        deltas = [
            sum(isinstance(piece, CallDelta) for piece in parser.push(letter)) for letter in text
        ]
        assert sum(deltas) > 60, (name, text)
    parser = FORMATS["qwen-coder"].parser(TOOLS)
    parser.push("<tool_call>\n<function=add>\n<parameter=b>\n")
    assert parser.push("some text") == [CallDelta("some text")]


def test_text_is_not_held_back_for_longer_than_needed() -> None:
    parser = FORMATS["hermes"].parser(TOOLS)
    assert parser.push("a <b <tool") == ["a <b "]
    assert parser.push("ing") == ["<tooling"]
    parser = FORMATS["llama3"].parser(TOOLS)
    assert parser.push("  ") == []
    assert parser.push("x") == ["  x"]
    assert parser.push("{") == ["{"]


def hostile(count: int) -> list[str]:
    """Texts of ``count`` repetitions on which something might go back and forth."""
    call = '<tool_call>{"name": "add", "arguments": '
    return [
        *(text * count for text in ("[", "{", '"', "\\", "\n", "<", "<tool_call>", "a ")),
        *(start + "[" * count for start in ("<tool_call>", call, "[TOOL_CALLS]add[ARGS]{")),
        *(start + '{"a":' * count for start in ("<tool_call>", "", call)),
        call + '{"b": "' + '\\"' * count,
        call + '{"b": "' + "</tool_call>" * count,
        '<tool_call>{"arguments": {"x": "' + '<tool_call>{"a": "' * count,
        "<tool_call>" + '{"x": 1, ' * count,
        "<tool_call>" + " " * count,
        "<think>" + "\n" * count,
        "<think>" + "</thin" * count,
        "<tool_call><function=add><parameter=b>" + "\n</parameter" * count,
        "<tool_call><function=add><parameter=c>" + "[" * count + "</parameter>",
        "<tool_call>add<arg_key>" + "a" * count,
        "<|tool_call>call:add{a:" + "[" * count,
        "<|tool_call>call:add{a:" + "a" * count,
        "<|tool_call_start|>[add(a=" + "(" * count,
        "<|tool_call_start|>[add(" + "a=1," * count,
        "<|channel|>" * count,
        "<|channel|>commentary to=functions.add" + "<|message|>" * count,
        "<|start|>assistant" * count,
        "<|tool_call_begin|>" * count,
        "<｜tool▁calls▁begin｜>" * count,
        '<minimax:tool_call><invoke name="' + "a" * count,
    ]


def steps(form: AnswerFormat, text: str, size: int) -> tuple[int, int]:
    """Calls of functions while ``text`` is read in parts of ``size``, and the longest text that is
    held back."""
    parser: Any = form.parser(TOOLS, PROMPT)
    count = held = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        for start in range(0, len(text), size):
            parser.push(text[start : start + size])
            held = max(held, len(parser._source._text) - parser._source._at)
        parser.finish()
    finally:
        sys.setprofile(None)
    return count, held


@pytest.mark.parametrize("name", FORMATS)
def test_reading_is_linear_in_the_text(name: str) -> None:
    """Work is counted, not timed: as much again for as much text, and nothing long is kept where
    it would be looked at again."""
    for short, long in zip(hostile(25), hostile(50), strict=True):
        for size in (1, 1 << 20):
            less, _ = steps(FORMATS[name], short, size)
            more, held = steps(FORMATS[name], long, size)
            assert more <= 2.2 * less + 300, long[:40]
            assert held < 64 or size > 1, long[:40]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_million_brackets(name: str) -> None:
    for text in hostile(1_000_000)[:4]:
        found = read(FORMATS[name], cut(text, range(0, len(text), 1000)))
        assert sum(map(len, found)) > 999_000 or name == "harmony"


@pytest.mark.parametrize(
    ("name", "prompt", "answer", "expected"),
    [
        ("qwen3", "assistant\n<think>\n", "\nHm.\n</think>\n\nYes.", [["Hm."], "Yes."]),
        ("qwen3", "<think>\n\n</think>\n\n", "Yes.", ["Yes."]),
        ("qwen3", "x", "\n <think>a  b\n\nc</think>d", [["a  b\n\nc"], "d"]),
        ("qwen3", "x", "<think>\n\n</think>\n\nYes.", ["Yes."]),
        ("qwen3", "x", "<think>never over </thin", [["never over </thin"]]),
        ("qwen3", "x", "  Yes.</think>", ["  Yes.</think>"]),
        ("qwen3", "x", "<thin", ["<thin"]),
        ("qwen3", "x", "Yes. <think>No.</think>", ["Yes. <think>No.</think>"]),
        ("qwen3", "<think>", "", []),
        ("dsml", "<think>", f"hm</think>\n\n<{DSML}function_calls>", None),
        ("mistral", "[THINK]", "hm[/THINK]So", [["hm"], "So"]),
        ("harmony", "<|start|>assistant<|channel|>final<|message|>So", " be it.", [" be it."]),
        ("harmony", "so be", " it.", [" it."]),
        ("gemma4", "<|turn>model\n", "<|channel>thought\n<channel|>So", ["So"]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_a_prompt_may_have_begun_the_answer(
    name: str, prompt: str, answer: str, expected: list[Any] | None, size: int, tools: Any
) -> None:
    parser = FORMATS[name].parser(tools, prompt)
    parts = [answer[start : start + size] for start in range(0, len(answer), size)]
    found = joined([*(piece for part in parts for piece in parser.push(part)), *parser.finish()])
    assert expected is None or found == expected


def test_the_format_is_the_templates() -> None:
    kinds = {name: type(form.calls) for name, form in FORMATS.items()}
    assert kinds == {
        **dict.fromkeys(("hermes", "granite3", "nemotron", "minimax1", "qwen3"), Hermes),
        **{"llama3": Llama3, "mistral": Mistral, "qwen-coder": QwenCoder, "glm": Glm},
        **{"deepseek": DeepSeek, "deepseek3": DeepSeek, "dsml": Invoke, "dsml4": Invoke},
        **{"minimax2": Invoke, "kimi": Kimi, "lfm2": Lfm2, "gemma4": Gemma4, "harmony": Harmony},
    }
    assert type(answer_format("").calls) is Hermes
    thinking = {name for name, form in FORMATS.items() if form.thinks}
    assert thinking == FORMATS.keys() - {
        *("hermes", "nemotron", "minimax1", "llama3", "deepseek3", "lfm2")
    }
    assert not answer_format("{{ messages[0].content }}").thinks


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
    assert read(FORMATS["hermes"], [told[2]["content"]]) == [("add", {})]
    system = tell_of_tools([{"role": "system", "content": "Be kind."}, *messages], tools)
    assert system[0]["content"].startswith("Be kind.\n\n")
    assert len(system) == 4


@pytest.mark.parametrize("name", FORMATS)
def test_calls_that_are_written_are_read_again(name: str) -> None:
    function = {"name": "add", "arguments": {"a": 1, "b": "it's \"\n", "c": [None, True, {}]}}
    message = {"role": "assistant", "content": "So", "tool_calls": [{"function": function}]}
    (written,) = with_calls_written([message], FORMATS[name].calls)
    assert "tool_calls" not in written
    if isinstance(FORMATS[name].calls, (Hermes, Lfm2)):
        assert read(FORMATS[name], [written["content"]]) == [
            "So",
            ("add", function["arguments"]),
        ]


def test_history_is_as_templates_want_it() -> None:
    calls = [{"id": "call_12345", "function": {"name": n, "arguments": {}}} for n in ("a", "b")]
    calls[1]["id"] = "other"
    messages = [
        {"role": "assistant", "content": "So", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "1", "tool_call_id": "other"},
        {"role": "tool", "content": "2", "tool_call_id": "call_12345"},
        {"role": "assistant", "content": "Done", "reasoning_content": "oh"},
    ]
    told = FORMATS["harmony"].calls.history(messages)
    assert [m.get("content") for m in told] == [None, "2", None, "1", "Done"]
    assert told[0]["reasoning_content"] == "hm\n\nSo"
    assert [len(m["tool_calls"]) for m in told if "tool_calls" in m] == [1, 1]
    short = FORMATS["mistral"].calls.history(messages)
    ids = [call["id"] for call in short[0]["tool_calls"]]
    assert ids == [short[2]["tool_call_id"], short[1]["tool_call_id"]]
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert FORMATS["mistral"].calls.history(short) == short
    assert FORMATS["kimi"].calls.history(messages) == messages


def test_numbers_that_are_none_make_no_object() -> None:
    for text in ('{"a": NaN}', '{"a": 1e999}', "[" * 100_000, "[]", ""):
        assert ToolCall("add", text).parsed is None
