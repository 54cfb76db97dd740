"""Where answers end, however their text is cut into tokens."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.decode import SamplingParams, StopChecker, StopStrings, stopping
from strata.errors import UsageError


def naive_cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Characters one at a time; of stop strings that end together the longest."""
    for end in range(1, len(text) + 1):
        found = [s for s in stops if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    pieces=st.lists(st.text("abé🙂\n", max_size=4), max_size=12),
    stops=st.lists(st.text("abé🙂\n", min_size=1, max_size=4), max_size=3),
)
def test_any_cutting_gives_the_same(pieces: list[str], stops: list[str]) -> None:
    cutter = StopStrings(stops)
    shown = ""
    whole, found = naive_cut("".join(pieces), stops)
    for piece in pieces:
        shown += cutter.push(piece)
        assert whole.startswith(shown), "text was shown that is part of a stop string"
    shown += cutter.finish()
    assert (shown, cutter.found) == (whole, found)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    cutter = StopStrings(["</end>"])
    assert cutter.push("answer </") == "answer "
    assert cutter.push("em>") == "</em>"
    assert cutter.push("</en") == ""
    assert cutter.push("d> more") == ""
    assert cutter.found == "</end>"
    assert cutter.push("anything") == ""


class Bytes:
    """Token i is byte i; characters come out when they are whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(bytes([id]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def play(checker: StopChecker, tokens: bytes) -> tuple[str, str | None, int]:
    """Shown text, reason, and tokens taken."""
    text = ""
    for taken, token in enumerate(tokens, start=1):
        shown, reason = checker.push(token)
        text += shown
        if reason is not None:
            return text, reason, taken
    return text, None, len(tokens)


END = 3


def checker(limit: int = 100, **params: object) -> StopChecker:
    return StopChecker(SamplingParams(**params), frozenset({END}), limit, Bytes())  # type: ignore[arg-type]


def test_stop_string_across_tokens_of_half_characters() -> None:
    tokens = "schön 🙂 und weiter".encode()
    text, reason, taken = play(checker(stop="🙂"), tokens)
    assert (text, reason) == ("schön ", "stop")
    assert taken == len("schön 🙂".encode())


def test_an_end_token_gives_what_was_held_back() -> None:
    assert play(checker(stop=["abc"]), b"xab\x03yz") == ("xab", "stop", 4)


def test_ignored_end_tokens() -> None:
    assert play(checker(ignore_eos=True), b"a\x03b") == ("a\x03b", None, 3)
    assert play(checker(ignore_eos=True, stop_token_ids=[END]), b"a\x03b") == ("a", "stop", 2)
    assert play(checker(stop_token_ids=[ord("b")]), b"aab") == ("aa", "stop", 3)


def test_the_limit_gives_everything() -> None:
    assert play(checker(limit=3, stop="bc"), b"aab-") == ("aab", "length", 3)
    assert play(checker(limit=4), b"a\xe2a\xe2") == ("a\ufffda", "length", 4)


def test_a_stop_string_completed_by_the_last_token_counts() -> None:
    assert play(checker(limit=3, stop="bc"), b"abc") == ("a", "stop", 3)


def test_a_cut_inside_a_character_ends_before_it() -> None:
    assert play(checker(limit=3), "a€".encode()) == ("a", "length", 3)
    assert play(checker(limit=4), "a€".encode()) == ("a€", "length", 4)
    assert play(checker(limit=2, stop="\ufffd"), "a€".encode()) == ("a", "length", 2)
    # Where the model itself ends there, it wrote half a character.
    assert play(checker(limit=9), b"a\xe2\x03") == ("a\ufffd", "stop", 3)


def test_without_text() -> None:
    silent = StopChecker(SamplingParams(), frozenset({END}), 2, None)
    assert silent.push(65) == ("", None)
    assert silent.push(65) == ("", "length")
    with pytest.raises(UsageError, match="stop strings"):
        StopChecker(SamplingParams(stop="x"), frozenset(), 2, None)


def lines_run(work: Callable[[], object], *modules: ModuleType) -> int:
    """How many lines of these modules ``work`` runs: what it costs, on any machine."""
    files = {module.__file__ for module in modules}
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    def enter(frame: FrameType, event: str, arg: object) -> Any:
        return trace if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("fill", ["a" * 4000, "ab" * 2000, "aab" * 1500])
def test_long_stop_strings_cost_as_much_as_the_text_is_long(fill: str) -> None:
    stops = [fill + "x", fill[1:] + "yy", "b" * 50_000]

    def push_all() -> None:
        cutter = StopStrings(stops)
        for at in range(0, len(fill) - 4, 4):
            cutter.push(fill[at : at + 4])
            cutter.push("")

    assert lines_run(push_all, stopping) < 40 * len(stops) * len(fill)
