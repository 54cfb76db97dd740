"""Conversations that have become too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from strata.text.turns import Message, without_oldest


def conversation(turns: int, system: bool = True) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": "s"}] if system else []
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"q{turn}"},
            {"role": "assistant", "content": f"a{turn}"},
        ]
    return [*messages, {"role": "user", "content": "last"}]


def ten_each(messages: Sequence[Message]) -> int:
    return 10 * len(messages)


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("most", [10, 40, 70, 100])
def test_the_fewest_turns_go(turns: int, most: int, system: bool) -> None:
    messages = conversation(turns, system)
    kept, dropped = without_oldest(messages, ten_each, most=most, aim=most // 2)
    if ten_each(messages) <= most:
        assert (kept, dropped) == (messages, 0)
        return
    head = messages[:1] if system else []
    choices = [[*head, *messages[len(head) + 2 * n :]] for n in range(1, turns + 1)]
    fitting = [choice for choice in choices if ten_each(choice) <= most // 2]
    expected = fitting[0] if fitting else choices[-1] if choices else messages
    assert kept == expected
    assert dropped == (len(messages) - len(kept)) // 2
    assert kept[-1] == messages[-1]


def test_what_belongs_to_a_turn_goes_with_it() -> None:
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "2"},
    ]
    kept, dropped = without_oldest(messages, ten_each, most=40, aim=40)
    assert (kept, dropped) == (messages[4:], 1)
