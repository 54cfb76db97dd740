"""Calls and thoughts in a model's words, however the text is cut."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from strata.server.parsers import AnswerFormat, ToolCall, answer_format
from strata.server.parsers.base import CallDelta
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
from strata.server.parsers.qwen_coder import QwenCoder
from support.sampling import every
from support.tool_answers import FORMATS, PROMPT, TOOLS, joined, read

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
        "<parameter=f>['x', {\"y\": (1, None)}]</parameter><parameter=g>[x</parameter>"
        "</function></tool_call><tool_call><function=get.it></function></tool_call>",
        [
            call("add", {"a": "one", "c": True, "f": ["x", {"y": [1, None]}], "g": "[x"}),
            GET,
        ],
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
    (
        "seed",
        "<seed:think>hm</seed:think><seed:tool_call>\n<function=get.it>\n</function>\n"
        "</seed:tool_call>",
        [["hm"], GET],
    ),
    (
        "command-r",
        '<|START_ACTION|>[\n  {"tool_call_id": "0", "tool_name": "get.it", "parameters": {}}\n]'
        "<|END_ACTION|>",
        [GET],
    ),
    ("qwen3", "<think>\nHm, 2 < 3.\n</think>\n\nYes.\n", [["Hm, 2 < 3."], "Yes.\n"]),
    ("qwen3", f"<think><tool_call>{GET_JSON}</think>", [[f"<tool_call>{GET_JSON}"]]),
]


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


@pytest.mark.parametrize("name", every(4, FORMATS))
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
    texts = hostile(1_000_000)
    for text in [*texts[:4], *texts[8:17]]:
        found = read(FORMATS[name], cut(text, range(0, len(text), 1000)))
        assert len(str(found)) > 999_000


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
        **{"command-r": Hermes, "seed": QwenCoder},
        **{"llama3": Llama3, "mistral": Mistral, "qwen-coder": QwenCoder, "glm": Glm},
        **{"deepseek": DeepSeek, "deepseek3": DeepSeek, "dsml": Invoke, "dsml4": Invoke},
        **{"minimax2": Invoke, "kimi": Kimi, "lfm2": Lfm2, "gemma4": Gemma4, "harmony": Harmony},
    }
    for template in ("", "<arg_key> tool_calls"):
        assert type(answer_format(template).calls) is Hermes
    thinking = {name for name, form in FORMATS.items() if form.thinks}
    assert thinking == FORMATS.keys() - {
        *("hermes", "nemotron", "minimax1", "llama3", "deepseek3", "lfm2", "command-r")
    }
    assert not answer_format("{{ messages[0].content }}").thinks


def test_numbers_that_are_none_make_no_object() -> None:
    for text in ('{"a": NaN}', '{"a": 1e999}', "[" * 100_000, "[]", ""):
        assert ToolCall("add", text).parsed is None


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("hermes", 'So: <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'),
        ("llama3", '{"name": "add", "parameters": {"a": 1}}'),
        ("mistral", 'So: [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]'),
    ],
)
def test_a_call_that_is_cut_is_no_text(name: str, whole: str) -> None:
    """Wherever the limit cuts an answer: of a call that has not begun there is nothing, and all
    of it is text only where nothing says that it will be a call."""
    surely = whole.index('"name"') + len('"name"')
    for end in range(surely, len(whole)):
        parser = FORMATS[name].parser(TOOLS, "x")
        found = [*parser.push(whole[:end]), *parser.finish(cut=True)]
        text = "".join(piece for piece in found if isinstance(piece, str))
        assert text.strip() in ("", "So:"), whole[:end]


def test_an_object_that_is_cut_is_text() -> None:
    parser = FORMATS["llama3"].parser(TOOLS, "x")
    answer = '{"city": "Rome", "po'
    found = [*parser.push(answer), *parser.finish(cut=True)]
    assert "".join(piece for piece in found if isinstance(piece, str)) == answer
