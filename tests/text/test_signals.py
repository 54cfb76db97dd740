"""A signal in the middle of code that cannot pass its exception on is neither lost nor changed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from strata.formats import open_model
from strata.text import bpe, load_tokenizer
from strata.text.signals import held_back


def test_the_handler_runs_after_the_block() -> None:
    ended = False

    def block() -> None:
        nonlocal ended
        with held_back():
            signal.raise_signal(signal.SIGINT)
            ended = True

    with pytest.raises(KeyboardInterrupt):
        block()
    assert ended
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_gives_way_to_the_signal() -> None:
    def block() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt) as raised:
        block()
    assert isinstance(raised.value.__context__, ValueError)


def test_other_threads_change_no_handler() -> None:
    seen: list[object] = []

    def look() -> None:
        with held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_an_interrupt_while_a_tokenizer_is_built(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_model(smollm2_path) as file:
        tokenizer = load_tokenizer(file)
    length = bpe._Merges.__len__

    def interrupted(merges: Sequence[object]) -> int:
        signal.raise_signal(signal.SIGINT)
        return length(merges)  # type: ignore[arg-type]

    monkeypatch.setattr(bpe._Merges, "__len__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("Hello")
    monkeypatch.undo()
    assert tokenizer.decode(tokenizer.encode("Hello there")) == "Hello there"
