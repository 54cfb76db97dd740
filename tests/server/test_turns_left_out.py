"""Where a conversation does not fit, as few turns as can be are left out, and are found by
rendering little: a client that sends thousands of turns again and again must not hold up others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from strata.decode import SamplingParams
from strata.engine import ContextExceeded
from strata.server import conversation
from strata.server.conversation import Conversation, _without_oldest
from support.sampling import every

CONTEXT = 1000


class Tokens:
    """A service whose texts have as many tokens as their messages say, and that counts the messages
    that it renders."""

    def __init__(self, tokens: Callable[[Mapping[str, Any]], int]) -> None:
        self.llm = SimpleNamespace(context=CONTEXT)
        self.rendered: list[int] = []
        self._tokens = tokens

    async def beside(self, work: Callable[[], Any]) -> Any:
        return work()

    async def prepare(
        self, service: object, wanted: Conversation, form: object
    ) -> tuple[Sequence[Mapping[str, Any]], SamplingParams]:
        self.rendered.append(len(wanted.messages))
        return wanted.messages, wanted.params

    def count(self, messages: Sequence[Mapping[str, Any]]) -> int:
        return sum(map(self._tokens, messages))

    async def encode(
        self, messages: Sequence[Mapping[str, Any]], *, counted: bool = False
    ) -> list[int]:
        count = self.count(messages)
        if count > CONTEXT and not counted:
            raise ContextExceeded("too many", count, CONTEXT)
        return [0] * count


def said(rng: random.Random, turns: int, most: int) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": "Be brief."}]
    for _ in range(turns):
        messages.append({"role": "user", "content": "a" * rng.randrange(most)})
        if rng.random() < 0.7:
            messages.append({"role": "assistant", "content": "b" * rng.randrange(most)})
    return messages


def fewest(tokens: Tokens, messages: list[dict[str, Any]], most: int) -> int | None:
    """Turns that are left out where each number is tried."""
    rest = messages[1:]
    starts = [number for number, message in enumerate(rest) if message["role"] == "user"]
    for number in range(1, len(starts)):
        count = tokens.count([messages[0], *rest[starts[number] :]])
        if count <= most or (number == len(starts) - 1 and count < CONTEXT):
            return count
    return None


@pytest.mark.parametrize("seed", every(6, range(60)))
def test_as_few_as_can_be_are_left_out(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    # Characters of a token, which nobody knows before; some texts have many more than others.
    each, markup = rng.choice((1, 3, 4, 9)), rng.choice((1, 5, 40))
    dense = rng.choice((0, 0.02, 0.5))
    of = dict.fromkeys(range(2), each)

    def count(message: Mapping[str, Any]) -> int:
        length = len(message["content"])
        return markup + length // (1 if length % 97 < 97 * dense else of[0])

    tokens = Tokens(count)
    monkeypatch.setattr(conversation, "_prepare", tokens.prepare)
    monkeypatch.setattr(conversation, "note", lambda text: None)
    messages = said(rng, rng.choice((2, 40, 400, 3000)), rng.choice((4, 60, 900)))
    limit = rng.choice((1, 100, 5000))
    wanted = Conversation(messages, SamplingParams(max_tokens=limit))
    expected = fewest(tokens, messages, CONTEXT - min(limit, CONTEXT // 4))
    if tokens.count(messages) <= CONTEXT:
        return
    found = _without_oldest(tokens, wanted, None)  # type: ignore[arg-type]
    if expected is None:
        with pytest.raises(ContextExceeded):
            asyncio.run(found)
    else:
        assert len(asyncio.run(found)) == expected


def test_little_is_rendered_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(lambda message: 5 + len(message["content"]) // 3)
    monkeypatch.setattr(conversation, "_prepare", tokens.prepare)
    monkeypatch.setattr(conversation, "note", lambda text: None)
    messages = said(random.Random(1), 20_000, 60)
    wanted = Conversation(messages, SamplingParams(max_tokens=1))
    asyncio.run(_without_oldest(tokens, wanted, None))  # type: ignore[arg-type]
    kept = CONTEXT / (tokens.count(messages) / len(messages))
    assert sum(tokens.rendered) < 8 * kept

    # One that is too large alone is not rendered again and again with others before it.
    tokens.rendered.clear()
    last = {"role": "user", "content": "a" * 9 * CONTEXT}
    wanted = Conversation([*messages, last], SamplingParams(max_tokens=1))
    with pytest.raises(ContextExceeded):
        asyncio.run(_without_oldest(tokens, wanted, None))  # type: ignore[arg-type]
    assert len(tokens.rendered) < 8
