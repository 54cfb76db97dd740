"""Chat templates by llama.cpp's names, against what llama-server makes of one conversation."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from strata.guard.templates import render
from strata.text import tokenizer_from_gguf
from strata.text.template_names import TEMPLATES, template_of
from support.small_vocabularies import sentencepiece

CHAT = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " Hi"},
    {"role": "assistant", "content": " Hello. "},
    {"role": "user", "content": "Bye"},
]
EXPECTED = json.loads((Path(__file__).parent / "goldens" / "template_names.json").read_text())
"""What ``llama-server --no-jinja --chat-template NAME`` renders (``llama2-sys`` for ``llama2``)."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_llama_server_has_it(name: str) -> None:
    variables: dict[str, Any] = {"messages": CHAT, "bos_token": "<s>"}
    found = render(TEMPLATES[name], {**variables, "add_generation_prompt": True})
    assert found == EXPECTED[name]
    begun = render(TEMPLATES[name], {**variables, "add_generation_prompt": False})
    assert found.startswith(begun)


def test_a_template_itself_is_none_of_the_names() -> None:
    assert template_of("{{ messages }}", add_bos=True) == "{{ messages }}"
    assert template_of("chatml", add_bos=False) == TEMPLATES["chatml"]
    assert template_of("chatml", add_bos=True) == "{{ bos_token }}" + TEMPLATES["chatml"]


def test_a_template_that_asks_for_the_date() -> None:
    source = "{{ date_string | default('1 Jan 2025') }}"
    data = {**sentencepiece({"a": 0.0}), "tokenizer.chat_template": source}
    before = datetime.now()
    tokenizer = tokenizer_from_gguf(data)
    told = tokenizer.apply_chat_template(CHAT, **tokenizer.usual_variables())
    # One of both, should it be midnight just now.
    assert told in {f"{day:%d %b %Y}" for day in (before, datetime.now())}
    # By itself it is what transformers makes of it.
    assert tokenizer.apply_chat_template(CHAT) == "1 Jan 2025"
    plain = {**data, "tokenizer.chat_template": "{{ bos_token }}"}
    assert tokenizer_from_gguf(plain).usual_variables() == {}


def test_a_template_that_reads_functions_instead_of_tools() -> None:
    # "functools" is what a model that reads them calls with.
    data = {**sentencepiece({"a": 0.0}), "tokenizer.chat_template": "functools: {{ functions }}"}
    tokenizer = tokenizer_from_gguf(data)
    assert tokenizer.usual_variables() == {"functions": ""}
    tools = [{"type": "function", "function": {"name": "now"}}]
    told = tokenizer.apply_chat_template(CHAT, **tokenizer.usual_variables(tools))
    assert json.loads(told.removeprefix("functools: ")) == tools
