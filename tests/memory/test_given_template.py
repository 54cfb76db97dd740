"""A chat template that is given instead of the model's is rendered within the budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata import LLM
from support.weighing import settled_bytes

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("given", "apart"), [(None, False), ("{{ messages[0].content }}!", True), ("chatml", True)]
)
def test_a_given_template_is_planned_for(
    smollm2_path: Path, given: str | None, apart: bool
) -> None:
    memory = settled_bytes() + 400_000_000
    with LLM(smollm2_path, memory=memory, context=64, chat_template=given) as llm:
        assert llm.plan is not None
        assert (llm.plan.template_bytes > 0) is apart
        text = llm.tokenizer.apply_chat_template(MESSAGES)
        assert (text == "Hi!") is (given is not None and "{" in given)
        assert "Hi" in text
