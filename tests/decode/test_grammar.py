"""Answers that obey a grammar, over a vocabulary small enough to know them all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from strata.decode import Sampler, SamplingParams
from strata.errors import UsageError

pytest.importorskip("llguidance", reason="llguidance, which compiles grammars, is not installed")

from strata.decode.grammar import GrammarCompiler, GrammarError, TokenGrammar

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
