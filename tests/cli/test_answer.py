"""Printing an answer: what a terminal gets, what a file gets, and how lines end."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from strata import Chunk, Output
from strata.cli.answer import print_answer
from strata.engine import Timings


class Out(io.TextIOWrapper):
    def __init__(self, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding, newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def written(self) -> bytes:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


def chunks(*texts: str, fails: bool = False) -> Iterator[Chunk]:
    output = Output("".join(texts), (), None, "stop", 1, None, Timings())
    for i, text in enumerate(texts):
        last = i == len(texts) - 1
        yield Chunk(0, text, 1, None, (), "stop" if last else None, output if last else None)
        if fails:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("terminal", "shown"),
    [(True, b"a\tb\n[2J\xc3\xa9\n"), (False, b"a\tb\n\x1b[2J\x07\xc2\x9b\xc3\xa9\n")],
)
def test_no_word_of_a_model_steers_the_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: bytes
) -> None:
    out = Out(terminal)
    monkeypatch.setattr(sys, "stdout", out)
    answer = print_answer(chunks("a\tb\n\x1b[2J", "\x07\x9bé"))
    assert out.written == shown
    assert answer.text == "a\tb\n\x1b[2J\x07\x9bé"


def test_a_newline_ends_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for texts, shown in ((("a", ""), b"a\n"), (("a\n", ""), b"a\n"), (("",), b"\n")):
        out = Out(terminal=False)
        monkeypatch.setattr(sys, "stdout", out)
        print_answer(chunks(*texts))
        assert out.written == shown


def test_an_interrupted_answer_ends_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Out(terminal=False)
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(KeyboardInterrupt):
        print_answer(chunks("half", "way", fails=True))
    assert out.written == b"half\n"


def test_characters_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Out(terminal=False, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    print_answer(chunks("é"))
    assert out.written == b"?\n"


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Out(terminal=False)
    monkeypatch.setattr(sys, "stdout", out)
    assert print_answer(chunks("a"), silent=True).text == "a"
    assert out.written == b""
