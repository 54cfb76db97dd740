"""Rendering: the variables, the filters, several templates, errors that say what is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest

from strata.errors import UsageError
from strata.text import ChatTemplate, ChatTemplateError, tokenizer_from_gguf
from support.chat_shapes import CHATML, CHATS, DOCUMENTS, HEADERS, INSTRUCTIONS, MACROS, TOOLS
from support.small_vocabularies import sentencepiece

_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
_USER = [{"role": "user", "content": "hi"}]


def _render(source: str, messages: Any = None, **kwargs: Any) -> str:
    return ChatTemplate(source, _SPECIAL).render(messages or _USER, **kwargs)


def test_chatml() -> None:
    assert _render(CHATML, CHATS["short"]) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert "assistant" not in _render(CHATML, CHATS["short"], add_generation_prompt=False)


def test_tools_and_calls() -> None:
    text = _render(HEADERS, CHATS["calls"], tools=TOOLS)
    assert text.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nToday: 1 Jan 2025\n")
    assert '"description": "The weather in a city — now, <b>in full</b>"' in text
    assert '{"name": "weather", "parameters": {"city": "Zürich", "days": 2}}<|eot_id|>' in text
    assert 'ipython<|end_header_id|>\n\n{"sky": "grey", "t": [1, 2.5]}<|eot_id|>' in text
    assert "You may call" not in _render(HEADERS, CHATS["calls"])
    assert "Today: now" in _render(HEADERS, date_string="now")


def test_alternating_turns_and_generation_blocks() -> None:
    text = _render(INSTRUCTIONS, CHATS["turns"])
    assert text == (
        "<s>[INST] Who are you? 你好 <|im_end|> [/INST] A model.</s>"
        "[INST] Be brief.\n\n\nReally? [/INST]"
    )
    with pytest.raises(ChatTemplateError, match="roles must alternate: assistant"):
        _render(INSTRUCTIONS, [{"role": "assistant", "content": "hi"}])


def test_documents_filters_and_operators() -> None:
    text = _render(MACROS, CHATS["turns"], documents=DOCUMENTS, extra="more")
    assert "[USER] Really?" in text
    assert "2/2: Zwei [('title', 'Zwei'), ('text', 'zweite')]" in text
    assert '[1, 2.5, true, null, "é<&>"]' in text
    assert '{"a":1} more' in text
    assert "x and 003.1 7% 32 ababab" in text


def test_the_clock() -> None:
    assert re.fullmatch(r"20\d\d-\d\d", _render("{{ strftime_now('%Y-%m') }}"))


def test_the_final_message_can_be_continued() -> None:
    chat = [*_USER, {"role": "assistant", "content": "Once upon "}]
    kept = _render(INSTRUCTIONS, chat, add_generation_prompt=False, continue_final_message=True)
    assert kept.endswith("[/INST] Once upon ")
    trimmed = _render(CHATML, chat, add_generation_prompt=False, continue_final_message=True)
    assert trimmed.endswith("<|im_start|>assistant\nOnce upon")
    with pytest.raises(UsageError, match="excludes add_generation_prompt"):
        _render(CHATML, chat, continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="does not print the last message"):
        _render("x", chat, add_generation_prompt=False, continue_final_message=True)


def test_templates_of_a_file() -> None:
    data = sentencepiece({"a": 0.0})
    with pytest.raises(ChatTemplateError, match="has no chat template; pass one"):
        tokenizer_from_gguf(data).apply_chat_template(_USER)
    given = tokenizer_from_gguf(data).apply_chat_template(_USER, chat_template="{{ eos_token }}!")
    assert given == "</s>!"

    named = {"tokenizer.chat_template.tool_use": "tools", "tokenizer.chat_template.rag": "rag"}
    tokenizer = tokenizer_from_gguf({**data, **named})
    with pytest.raises(ChatTemplateError, match="no default; name one of: rag, tool_use"):
        tokenizer.apply_chat_template(_USER)
    assert tokenizer.apply_chat_template(_USER, chat_template="rag") == "rag"

    tokenizer = tokenizer_from_gguf({**data, **named, "tokenizer.chat_template": "plain"})
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.source == "plain"
    assert tokenizer.apply_chat_template(_USER) == "plain"
    assert tokenizer.apply_chat_template(_USER, tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", r"does not parse: .* \(line 1\)"),
        ("a\n{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages | tojson(indent={}) }}", "TypeError"),
        ("{{ raise_exception('no ' ~ 'way') }}", "failed: no way"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too deeply"),
        ("{% if true %}" * 3000 + "{% endif %}" * 3000, "is nested or calls itself too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "is nested or calls itself too deeply"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
    ],
)
def test_failures_are_one_clear_error(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        _render(source)


@pytest.mark.parametrize("messages", [[], "hi", {"role": "user"}, ["hi"], [{"role": object()}]])
def test_malformed_messages_are_refused(messages: Any) -> None:
    with pytest.raises(UsageError):
        ChatTemplate(CHATML).render(messages)


def test_a_template_changes_nothing_outside() -> None:
    chat = [{"role": "user", "content": "hi", "list": [1]}]
    with pytest.raises(ChatTemplateError):
        _render("{{ messages[0].list.append(2) }}", chat)
    assert chat == [{"role": "user", "content": "hi", "list": [1]}]
