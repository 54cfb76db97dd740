"""Against transformers: chat templates to the letter, tokenizer directories id for id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_tokenizer_json import ENGINES, write

from strata.text import ChatTemplate, ChatTemplateError
from support.chat_shapes import CHATS, DOCUMENTS, TEMPLATES, TOOLS
from support.hard_texts import TEXTS, noise

pytestmark = pytest.mark.slow

_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("chat", list(CHATS))
@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("extras", [{}, {"tools": TOOLS, "documents": DOCUMENTS, "extra": 1}])
def test_rendering(
    transformers: Any,
    tmp_path: Path,
    template: str,
    chat: str,
    add: bool,
    extras: dict[str, Any],
) -> None:
    write(tmp_path, ENGINES["byte level"](), tokenizer_config=_SPECIAL)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    source = TEMPLATES[template]
    ours = ChatTemplate(source, _SPECIAL)
    options = {"add_generation_prompt": add, **extras}
    expected, failure = None, None
    try:
        expected = peer.apply_chat_template(
            CHATS[chat], chat_template=source, tokenize=False, **options
        )
    except Exception as error:
        failure = str(error)
    if failure is None:
        assert ours.render(CHATS[chat], **options) == expected
    else:
        with pytest.raises(ChatTemplateError, match=re.escape(failure)):
            ours.render(CHATS[chat], **options)


@pytest.mark.parametrize("template", ["chatml", "headers"])
@pytest.mark.parametrize("ending", ["Once", "Once ", "  Once upon\n\n"])
def test_continuing(transformers: Any, tmp_path: Path, template: str, ending: str) -> None:
    write(tmp_path, ENGINES["byte level"](), tokenizer_config=_SPECIAL)
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    chat = [*CHATS["short"], {"role": "assistant", "content": ending}]
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    expected = peer.apply_chat_template(
        chat, chat_template=TEMPLATES[template], tokenize=False, **options
    )
    assert ChatTemplate(TEMPLATES[template], _SPECIAL).render(chat, **options) == expected


@pytest.mark.parametrize(
    ("name", "config"),
    [*((name, {}) for name in ENGINES), ("byte fallback", {"add_bos_token": False})],
)
def test_directories(transformers: Any, tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    tokenizer = write(tmp_path, ENGINES[name](), tokenizer_config={**_SPECIAL, **config})
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    assert tokenizer.special_tokens.items() <= peer.special_tokens_map.items()
    for text in [*TEXTS, *noise(seed=11, count=100), "the<s>the</s> <|im_end|>"]:
        for add in (False, True):
            expected = peer.encode(text, add_special_tokens=add)
            assert tokenizer.encode(text, add_special=add, parse_special=True) == expected, text
        ids = peer.encode(text, add_special_tokens=False)
        for skip in (False, True):
            expected = peer.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert tokenizer.decode(ids, skip_special=skip) == expected, text
