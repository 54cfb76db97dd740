"""What a chat says when there is no more room, without a terminal or a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from strata import SamplingParams
from strata.cli import chat as chats

CONTEXT = 100


class Talker:
    """An LLM that says a word a token until it is stopped; each message is ten tokens a word."""

    context = CONTEXT
    tokenizer = ledger = None

    def __init__(self) -> None:
        self.asked: list[int] = []

    def generate(
        self, prompts: list[list[int]], params: SamplingParams, **_: Any
    ) -> Iterator[SimpleNamespace]:
        (ids,) = prompts
        self.asked.append(len(ids))
        count = CONTEXT - len(ids)
        if params.max_tokens is not None:
            count = min(count, params.max_tokens)
        output = SimpleNamespace(token_ids=[0] * count, finish_reason="length")
        yield SimpleNamespace(text=" ".join(["word"] * (count // 10)), output=output)


def ids(tokenizer: object, messages: Sequence[dict[str, str]], ledger: object) -> Any:
    words = sum(len(message["content"].split()) for message in messages)
    return SimpleNamespace(tolist=lambda: [0] * (10 * words))


def talk(
    monkeypatch: pytest.MonkeyPatch, entries: list[str], when_full: Any, most: int | None
) -> Talker:
    waiting = iter(entries)

    def entry() -> str:
        for line in waiting:
            return line
        raise EOFError

    monkeypatch.setattr("strata.engine.texts.chat_ids", ids)
    monkeypatch.setattr(chats, "prepare_terminal", lambda: None)
    monkeypatch.setattr(chats, "read_entry", entry)
    llm: Any = Talker()
    params = SamplingParams(max_tokens=most)
    chats.chat(llm, params, system=None, raw=False, stats=False, when_full=when_full)
    return llm


@pytest.mark.parametrize("when_full", ["drop", "refuse"])
@pytest.mark.parametrize("most", [None, 30, 60])
def test_every_answer_that_is_cut_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when_full: str,
    most: int | None,
) -> None:
    """The second one, too, whatever was given up or refused for it."""
    llm = talk(monkeypatch, ["one two", "three"], when_full, most)
    said = capsys.readouterr().err
    refused = said.count("positions is full; /clear begins anew")
    assert len(llm.asked) + refused == 2
    assert said.count("(cut off") == len(llm.asked)
    # An answer of thirty has room beside what was said before; the longer ones have not.
    fits = most == 30
    assert refused == (not fits and when_full == "refuse")
    assert ("the oldest turn was left out" in said) == (not fits and when_full == "drop")


@pytest.mark.parametrize("leave", ["/bye", "/exit", "/quit", "/q"])
def test_words_that_leave_do_not_go_to_the_model(
    monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    assert talk(monkeypatch, [leave, "one"], "drop", 10).asked == []


def test_commands_do_not_go_to_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    kept = tmp_path / "talk.json"
    orders = ["/set max_tokens 20", "one", f"/save {kept}", "/set max_tokens none at all", "/wrong"]
    assert talk(monkeypatch, orders, "drop", 10).asked == [10]
    said = capsys.readouterr().err
    assert "(cut off after 20 tokens: /set max_tokens changes that)" in said
    assert "(2 messages saved)" in said
    assert kept.exists()
    assert "max_tokens is a whole number or off" in said
    assert "there is no command /wrong" in said
