"""Tokens that a grammar forces are guessed, and the answer is the one without, to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from strata import LLM, SamplingParams
from strata.decode.suffix import SuffixProposer
from strata.engine.drafting import Drafting
from strata.formats import open_model
from strata.synth import SHAPES, write_model

pytest.importorskip("llguidance", reason="llguidance, which compiles grammars, is not installed")

SCHEMA = {
    "type": "object",
    "properties": {
        "temperature_in_degrees": {"type": "integer"},
        "is_it_raining_outside": {"type": "boolean"},
    },
    "required": ["temperature_in_degrees", "is_it_raining_outside"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("forced") / "m.gguf"
    with open_model(smollm2_path) as source:
        tokenizer = dict(source.metadata)
    write_model(SHAPES["tiny-llama"], path, recipe="F32", tokenizer=tokenizer)
    with LLM(path, context=256, parallel=3) as llm:
        yield llm


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_grammar_that_forces_tokens_needs_fewer_sweeps(llm: LLM, temperature: float) -> None:
    # All that is guessed is taken, whatever it takes.
    drafting = llm.engine.drafting = Drafting(SuffixProposer())
    p = SamplingParams(max_tokens=96, temperature=temperature, seed=2, logprobs=2)
    prompts = [[5, 9, 100], [7, 8], [300]]
    sweeps, outputs = [], []
    for enabled in (False, True):
        drafting.enabled = enabled
        before = llm.engine.status()
        grammar = llm.compile(json_schema=SCHEMA)
        outputs.append(llm.generate(prompts, replace(p, grammar=grammar)))
        sweeps.append(llm.engine.status().sweeps - before.sweeps)
        llm.engine.check_integrity()
    for plain, guessed in zip(*outputs, strict=True):
        assert guessed.token_ids == plain.token_ids
        assert guessed.logprobs == plain.logprobs
        if plain.finish_reason == "stop":
            assert json.loads(plain.text).keys() == SCHEMA["properties"].keys()
    assert sweeps[1] < sweeps[0]


def test_forced_tokens_are_told(llm: LLM) -> None:
    position = llm.compile(regex="(yes|no), and that is all").start()
    assert position.forced() == ()
    yes = llm.tokenizer.encode("yes")
    for token in yes:
        assert position.allowed()[token]
        position.accept(token)
    text = b"".join(llm.tokenizer.token_bytes(id) for id in position.forced())
    assert b", and that is all".startswith(text)
    assert len(text) > 4
    # Telling them changes nothing.
    assert position.forced() == position.forced()
    position.close()
