"""Answers that obey a grammar, over a vocabulary small enough to know them all."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import suppress

import numpy as np
import pytest

from strata.decode import Sampler, SamplingParams
from strata.decode.proposer import Draft
from strata.errors import UsageError
from strata.giving_way import Pace, set_pace
from strata.guard import limits
from strata.guard.wire import FrameError
from strata.memory import peak_bytes

pytest.importorskip("llguidance", reason="llguidance, which compiles grammars, is not installed")

from strata.decode.grammar import (
    GrammarCompiler,
    GrammarError,
    GrammarsBusy,
    TokenGrammar,
    _Position,
)

TEXTS = [b"", b"", *(bytes([byte]) for byte in range(32, 127)), "é".encode()[:1], "é".encode()[1:]]
END, OTHER = 0, 1
PADDING = 3


class Vocabulary:
    vocab_size = len(TEXTS)
    bos_id = None
    stop_ids = frozenset([END])

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        return TEXTS[id] or ([b"<end>", b"<other>"][id] if special else b"")

    def encode(self, text: str) -> list[int]:
        return [TEXTS.index(bytes([byte])) for byte in text.encode()]


COMPILER = GrammarCompiler(Vocabulary())


def answer(grammar: TokenGrammar, seed: int, **params: object) -> str:
    """What random logits say under a grammar."""
    options = {"temperature": 1.0, "seed": seed, **params}
    sampler = Sampler(
        SamplingParams(grammar=grammar, **options), [], Vocabulary.vocab_size + PADDING
    )
    draw = np.random.Generator(np.random.PCG64(seed))
    out = b""
    for _ in range(400):
        logits = draw.standard_normal(Vocabulary.vocab_size + PADDING, np.float32)
        # What the grammar forbids is what the model would like best.
        logits[[OTHER, -1]] = 20
        logits[TEXTS.index(b"}")] += 3
        logits[TEXTS.index(b'"')] += 3
        token = sampler.choose(logits).token
        assert token == sampler.choose(logits).token
        sampler.accept(token)
        if token == END:
            return out.decode()
        out += TEXTS[token]
    raise AssertionError(f"no end: {out!r}")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_is_valid_under_its_schema(seed: int, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["a", "bc"]}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    }
    value = json.loads(answer(COMPILER.json_schema(schema), seed, temperature=temperature))
    assert set(value) == {"name", "ok"}
    assert value["name"] in ("a", "bc")
    assert isinstance(value["ok"], bool)


@pytest.mark.parametrize("seed", range(5))
def test_json_is_on_one_line_and_has_what_is_named(seed: int) -> None:
    step = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    schema = {
        "type": "object",
        "$defs": {"step": step},
        "properties": {"a": {"$ref": "#/$defs/step"}, "b": {"type": "array", "items": step}},
        "required": ["a"],
    }
    text = answer(COMPILER.json_schema(schema), seed)
    value = json.loads(text)
    assert text == json.dumps(value)
    assert value.keys() <= {"a", "b"}
    assert all(item.keys() == {"n"} for item in (value["a"], *value.get("b", ())))


@pytest.mark.parametrize("seed", range(3))
def test_other_kinds(seed: int) -> None:
    assert answer(COMPILER.regex("[0-9]{3}-x"), seed)[3:] == "-x"
    assert answer(COMPILER.grammar('root ::= "yes" | "no"'), seed) in ("yes", "no")
    assert answer(COMPILER.grammar('start: "a" | "é"'), seed) in ("a", "é")


def test_answers_do_not_disturb_each_other() -> None:
    grammar = COMPILER.regex("abc")
    first, second = grammar.start(), grammar.start()
    first.accept(TEXTS.index(b"a"))
    assert np.flatnonzero(first.allowed()).tolist() == [TEXTS.index(b"b")]
    assert np.flatnonzero(second.allowed()).tolist() == [TEXTS.index(b"a")]


def test_a_dead_end_ends_the_answer() -> None:
    position = COMPILER.regex("abc").start()
    position.accept(TEXTS.index(b"z"))
    assert np.flatnonzero(position.allowed()).tolist() == [END]


def test_what_cannot_be_compiled_is_named() -> None:
    with pytest.raises(GrammarError, match="unclosed"):
        COMPILER.regex("(a")
    with pytest.raises(GrammarError, match="foo"):
        COMPILER.json_schema({"type": "foo"})
    for text in ("root ::= (", 'other ::= "a"', "root ::= other", "start: %", "", "\0"):
        with pytest.raises(GrammarError, match="not usable"):
            COMPILER.grammar(text)
    with pytest.raises(UsageError, match="ignore_eos"):
        SamplingParams(grammar=COMPILER.regex("a"), ignore_eos=True)


def test_grammars_that_never_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPILE_S", 0.2)
    other = COMPILER.regex("abc")
    position = other.start()
    before = peak_bytes()
    for number in (99999989, 99999971):
        with pytest.raises(GrammarError, match="processor time or 6 MiB of memory"):
            COMPILER.json_schema({"type": "integer", "multipleOf": number})
    assert peak_bytes() - before < 20e6
    # Others have noticed nothing.
    position.accept(TEXTS.index(b"a"))
    assert np.flatnonzero(position.allowed()).tolist() == [TEXTS.index(b"b")]


def test_the_system_ends_a_grammar_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the patience of whoever waits, which is for a machine that is busy, nor the bound of
    memory, in which it would be compiled in ten times as long."""
    monkeypatch.setattr(limits, "COMPILE_S", 0.08)
    monkeypatch.setattr(limits, "GRAMMAR_BYTES", 1 << 28)
    monkeypatch.setattr(limits, "PATIENCE", 100_000)
    with pytest.raises(GrammarError, match="processor time") as told:
        COMPILER.json_schema({"type": "integer", "multipleOf": 99991})
    assert isinstance(origin(told.value), FrameError)


def test_the_system_ends_a_mask_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a text that can be read in more and more ways, where all of them together may take long,
    and who waits is patient."""
    monkeypatch.setattr(limits, "MASK_S", 0.008)
    monkeypatch.setattr(limits, "MASKS_S", 1000)
    monkeypatch.setattr(limits, "COMPILE_S", 1000)
    monkeypatch.setattr(limits, "GRAMMAR_BYTES", 1 << 28)
    monkeypatch.setattr(limits, "PATIENCE", 100_000)
    position = COMPILER.lark('start: s\ns: s s s | s s | "a" | "a" s').start()

    def go_on() -> None:
        for _ in range(200):
            position.allowed()
            position.accept(TEXTS.index(b"a"))

    with pytest.raises(GrammarError, match="takes too much") as told:
        go_on()
    assert isinstance(origin(told.value), FrameError)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's names of processes")
def test_who_waits_for_tokens_goes_before_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled in pieces then, and has as much processor time as otherwise."""
    monkeypatch.setattr(limits, "COMPILE_S", 0.2)
    asked: list[None] = []
    set_pace(Pace(lambda: asked.append(None) or True))
    try:
        for _ in range(2):
            assert COMPILER.regex("(a|b)c").start().allowed().any()
        begun = len(asked)
        with pytest.raises(GrammarError, match="processor time"):
            COMPILER.json_schema({"type": "integer", "multipleOf": 99999989})
    finally:
        set_pace(None)
    assert len(asked) - begun >= 5


def origin(error: BaseException) -> BaseException:
    """What an error was made of."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def test_a_grammar_that_grows_later_ends_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = COMPILER.regex("ab").start()
    loud = COMPILER.regex("cd").start()
    assert loud.allowed().any()
    assert isinstance(loud, _Position)
    # As if it took forever from here on.
    os.kill(loud._compiled._ward.pid, signal.SIGSTOP)
    loud.accept(TEXTS.index(b"c"))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MASK_S", 0.004)
        with pytest.raises(GrammarError, match="takes too much"):
            loud.allowed()
    # To go on is no error, which would be that of everybody in the step; to ask is.
    loud.accept(TEXTS.index(b"d"))
    with pytest.raises(GrammarError, match="ended"):
        loud.allowed()
    quiet.accept(TEXTS.index(b"a"))
    assert np.flatnonzero(quiet.allowed()).tolist() == [TEXTS.index(b"b")]
    # And the same grammar may be asked for again.
    assert COMPILER.regex("cd").start().allowed().any()


def test_a_machine_that_is_busy_ends_no_grammar() -> None:
    position = COMPILER.regex("ab").start()
    assert isinstance(position, _Position)
    pid = position._compiled._ward.pid
    os.kill(pid, signal.SIGSTOP)
    position.accept(TEXTS.index(b"a"))
    # As long as a hundred others take that want the processor.
    threading.Timer(1.2, os.kill, (pid, signal.SIGCONT)).start()
    assert np.flatnonzero(position.allowed()).tolist() == [TEXTS.index(b"b")]


def test_it_is_known_whether_anybody_has_to_be_waited_for() -> None:
    position = COMPILER.regex("abc").start()
    assert position.ready(60.0)
    assert isinstance(position, _Position)
    pid = position._compiled._ward.pid
    os.kill(pid, signal.SIGSTOP)
    position.accept(TEXTS.index(b"a"))
    assert not position.ready()
    assert not position.ready(0.01)
    os.kill(pid, signal.SIGCONT)
    assert position.ready(60.0)
    assert np.flatnonzero(position.allowed()).tolist() == [TEXTS.index(b"b")]
    # Whose process is gone has nothing to wait for, and is told why.
    os.kill(pid, signal.SIGSTOP)
    position.accept(TEXTS.index(b"b"))
    os.kill(pid, signal.SIGKILL)
    assert position.ready(60.0)
    with pytest.raises(GrammarError, match="takes too much"):
        position.allowed()


def test_nobody_waits_for_ever_for_a_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    position = COMPILER.regex("abcd").start()
    assert isinstance(position, _Position)
    assert position.allowed().any()
    os.kill(position._compiled._ward.pid, signal.SIGSTOP)
    position.accept(TEXTS.index(b"a"))
    assert not position.ready()
    monkeypatch.setattr(limits, "PATIENCE", 0)
    assert position.ready()
    with pytest.raises(GrammarError, match="takes too much"):
        position.allowed()


def test_what_the_library_does_not_survive_is_an_error() -> None:
    deep: dict[str, object] = {}
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    for schema in (deep, {"enum": ["\ud800"]}, {"pattern": "\ud800"}, {"const": "x" * 10**6}):
        with suppress(GrammarError):
            COMPILER.json_schema(schema)
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(GrammarError, match="deep"):
        COMPILER.json_schema(deep)
    with pytest.raises(GrammarError, match="not usable"):
        COMPILER.regex("(" * 100_000)
    for text in ("\ud800", "start: " + "(" * 50_000, 'start: "a"' + " | start" * 50_000):
        with suppress(GrammarError):
            COMPILER.grammar(text)
    assert COMPILER.regex("ab").start().allowed().any()


def test_a_panic_is_told_and_not_waited_for() -> None:
    """The library cuts what it quotes in the middle of a character."""
    schema = {"type": "object", "required": "é" * 512}
    with pytest.raises(UsageError, match="char boundary"):
        COMPILER.json_schema(schema)
    # Each other kind is read where no file can be opened, too.
    assert answer(COMPILER.grammar('root ::= "ab"'), 1) == "ab"


def test_no_more_grammars_than_there_may_be() -> None:
    compiler = GrammarCompiler(Vocabulary(), most=2)
    first, second = compiler.regex("a"), compiler.regex("b")
    assert compiler.regex("a")._compiled is first._compiled
    with pytest.raises(GrammarsBusy, match="2 other grammars"):
        compiler.regex("c")
    position = second.start()
    del second
    with pytest.raises(GrammarsBusy):
        compiler.regex("c")
    del position
    third = compiler.regex("c")
    assert third.start().allowed()[TEXTS.index(b"c")]
    assert first.start().allowed()[TEXTS.index(b"a")]


def test_what_is_closed_is_not_in_use() -> None:
    compiler = GrammarCompiler(Vocabulary(), most=1)
    first = compiler.regex("ab")
    sampler = Sampler(SamplingParams(grammar=first), [], Vocabulary.vocab_size)
    first.close()
    with pytest.raises(GrammarsBusy):
        compiler.regex("c")
    # What has begun goes on.
    logits = np.zeros(Vocabulary.vocab_size, np.float32)
    assert sampler.choose(logits).token == TEXTS.index(b"a")
    trial = sampler.verify(iter([logits, logits]), Draft((TEXTS.index(b"a"),)))
    assert [sample.token for sample in trial] == [TEXTS.index(b"a"), TEXTS.index(b"b")]
    sampler.close()
    assert compiler.regex("c").start().allowed()[TEXTS.index(b"c")]


def test_copies_go_their_own_way() -> None:
    position = COMPILER.regex("abc|axy").start()
    position.accept(TEXTS.index(b"a"))
    other = position.copy()
    other.accept(TEXTS.index(b"x"))
    position.accept(TEXTS.index(b"b"))
    assert np.flatnonzero(other.allowed()).tolist() == [TEXTS.index(b"y")]
    assert np.flatnonzero(position.allowed()).tolist() == [TEXTS.index(b"c")]


@pytest.mark.parametrize(
    "expression", ["(a{1,999}){1,999}", "(.*a){20}.{900}b", "(.*){9}a.{999}", "((a?){30}){30}b"]
)
def test_hard_expressions_end_in_bounds(expression: str) -> None:
    with suppress(GrammarError):
        position = COMPILER.regex(expression).start()
        for _ in range(40):
            allowed = np.flatnonzero(position.allowed())
            position.accept(int(allowed[-1]))


def test_a_grammar_that_is_slow_all_the_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MASKS_S", 0)
    monkeypatch.setattr(limits, "MASK_EACH_S", 1e-7)
    with pytest.raises(GrammarError, match="ms for a token"):
        COMPILER.regex("slow").start().allowed()
