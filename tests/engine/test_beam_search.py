"""Beam search over shared blocks finds what a search finds that computes every beam whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import make_tiny_models
from strata import LLM, BeamOutput, SamplingParams, UsageError
from strata.decode.sampling import report
from strata.engine import ContextExceeded, Engine
from strata.engine.beam_search import Beam, BeamParams
from strata.kv import PoolError

CONTEXT, WIDTH, END = 128, 4, 271


def write(path: Path, name: str = "llama", ends: float = 3.0) -> Path:
    """A tiny model that comes to an end now and then."""
    made = make_tiny_models.write_directory(path, make_tiny_models.golden(name))
    file = made / "model.safetensors"
    arrays = load_file(file)
    head = "lm_head.weight" if "lm_head.weight" in arrays else "model.embed_tokens.weight"
    arrays[head] *= 2
    arrays[head][END] *= ends
    save_file(arrays, file)
    return made


def naive(engine: Engine, prompt: Sequence[int], p: BeamParams) -> list[Beam]:
    """Each beam computed whole in each step, to the last step."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[Beam] = []

    def beam(tokens: tuple[int, ...], logprob: float, *, end: bool) -> Beam:
        return Beam(tokens, logprob, logprob / len(tokens) ** p.length_penalty, end)

    for _ in range(p.max_tokens):
        ways = []
        for number, (tokens, logprob) in enumerate(live):
            rows: list[NDArray[np.float32]] = []
            text = [*prompt, *tokens]
            engine.visit_logits(
                [*text, 0], len(text) - 1, lambda r, rows=rows: rows.extend(r.copy())
            )  # type: ignore[misc]
            for place, (token, more) in enumerate(report(0, rows[0], len(rows[0])).top):
                ways.append((-(logprob + more), number, place, token))
        ways.sort()
        chosen = []
        for rank, (negative, number, _, token) in enumerate(ways):
            tokens = (*live[number][0], token)
            if token == END and not p.ignore_eos:
                ended += [beam(tokens, -negative, end=True)] if rank < p.width else []
            elif len(chosen) < p.width:
                chosen.append((tokens, -negative))
        live = chosen
    found = [*ended, *(beam(tokens, logprob, end=False) for tokens, logprob in live)]
    return sorted(found, key=lambda beam: -beam.score)[: p.count]


def as_beam(found: BeamOutput) -> Beam:
    ended = found.finish_reason == "stop"
    return Beam(found.token_ids, found.cumulative_logprob, found.score, ended)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
def test_it_finds_what_a_search_without_shared_blocks_finds(name: str, tmp_path: Path) -> None:
    """Windows and recurrent state among them; across the end of a block, to the bit."""
    path = write(tmp_path / "m", name)
    prompt = np.random.default_rng(2).integers(0, 250, 59).tolist()
    with LLM(path, context=CONTEXT, parallel=8, draft="off", planned=False) as llm:
        ended = 0
        for penalty, count, eos in (
            (1.0, 3, True),
            (0.0, 1, True),
            (-1.0, 2, True),
            (2.0, 4, False),
        ):
            p = BeamParams(WIDTH, count, 8, penalty, not eos)
            found = llm.beam_search(
                prompt,
                beam_width=WIDTH,
                n=count,
                max_tokens=8,
                length_penalty=penalty,
                ignore_eos=not eos,
            )
            expected = naive(llm.engine, prompt, p)
            assert [as_beam(output) for output in found] == expected
            ended += sum(beam.ended for beam in expected)
            llm.engine.check_integrity()
        assert ended > 0 or name != "llama"


def test_others_go_on_beside_it_and_none_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "m")
    prompt, other = np.random.default_rng(2).integers(0, 250, (2, 40)).tolist()
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with LLM(path, context=CONTEXT, parallel=8, draft="off", planned=False) as llm:
        alone = llm.generate(other, params).token_ids
        expected = llm.beam_search(prompt, n=WIDTH, max_tokens=12)
        search = llm.engine.beam_search(prompt, BeamParams(WIDTH, WIDTH, 12))
        request = llm.engine.submit(other, params)
        while not search.over or llm.engine.busy:
            if not search.over:
                llm.engine.advance(search)
            llm.engine.step()
        assert tuple(sample.token for sample in request.output) == alone
        assert search.best == [as_beam(output) for output in expected]
        llm.engine.check_integrity()


def test_it_goes_on_with_the_blocks_of_another_budget(tmp_path: Path) -> None:
    """As if it began with what it has."""
    path = write(tmp_path / "m")
    prompt = np.random.default_rng(2).integers(0, 250, 70).tolist()
    with LLM(path, context=CONTEXT, parallel=8, draft="off", planned=False) as llm:
        expected = llm.beam_search(prompt, n=WIDTH, max_tokens=10)
        search = llm.engine.beam_search(prompt, BeamParams(WIDTH, WIDTH, 10))
        for _ in range(4):
            llm.engine.advance(search)
        llm.engine._memory = llm.engine._make_memory()
        while not search.over:
            llm.engine.advance(search)
        assert search.best == [as_beam(output) for output in expected]


def test_who_finds_no_kv_beside_it_waits_until_it_goes_on(tmp_path: Path) -> None:
    """And is not planned again and again meanwhile."""
    path = write(tmp_path / "m")
    prompt, other = np.random.default_rng(2).integers(0, 250, (2, 100)).tolist()
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    with LLM(path, context=CONTEXT, parallel=2, draft="off", planned=False) as llm:
        alone = llm.generate(other, params).token_ids
        expected = llm.beam_search(prompt, beam_width=3, max_tokens=8, ignore_eos=True)
        search = llm.engine.beam_search(prompt, BeamParams(3, 1, 8, ignore_eos=True))
        for _ in range(4):
            llm.engine.advance(search)
        assert llm.engine.status().kv_blocks_free == 0
        with ThreadPoolExecutor(2) as pool:
            answer = pool.submit(llm.generate, other, params)
            end = time.monotonic() + 20
            while not llm.engine.held_up:
                assert time.monotonic() < end
                time.sleep(0.001)
            time.sleep(0.01)
            assert llm.engine.status().preemptions == 1
            measured = pool.submit(llm.measure, prompt=8, gen=4, repeat=1)
            while not search.over:
                with llm.driver.alone() as engine:
                    engine.advance(search)
            assert answer.result(60).token_ids == alone
            assert measured.result(60)
        assert search.best == [as_beam(output) for output in expected]
        llm.engine.check_integrity()


def test_a_long_prompt_takes_several_steps(tmp_path: Path) -> None:
    """Between which others have theirs."""
    path = write(tmp_path / "m")
    prompt = np.random.default_rng(2).integers(0, 250, 70).tolist()
    with LLM(path, context=CONTEXT, parallel=8, draft="off", planned=False) as llm:
        expected = llm.beam_search(prompt, n=WIDTH, max_tokens=3)
        llm.engine.token_budget = 16
        search = llm.engine.beam_search([*prompt], BeamParams(WIDTH, WIDTH, 3))
        llm.engine._memory = llm.engine._make_memory()
        for computed in (16, 32, 48, 64, 70):
            assert search.best == []
            llm.engine.advance(search)
            assert search.computed_tokens == computed
        assert [len(beam.tokens) for beam in search.best] == [1] * WIDTH
        while not search.over:
            llm.engine.advance(search)
        assert search.best == [as_beam(output) for output in expected]


def test_beams_share_what_they_have_in_common(tmp_path: Path) -> None:
    """Blocks for one prompt, and one more for each beam; and without room there is an error."""
    path = write(tmp_path / "m", ends=0.0)
    prompt = np.random.default_rng(2).integers(0, 250, 100).tolist()
    with LLM(path, context=CONTEXT, parallel=4, draft="off", planned=False) as llm:
        free = llm.engine.status().kv_blocks_free
        search = llm.engine.beam_search(prompt, BeamParams(WIDTH, 1, 12))
        for _ in range(6):
            llm.engine.advance(search)
        assert free - llm.engine.status().kv_blocks_free <= 1 + WIDTH
        search.close()
        llm.engine.check_integrity()
        with pytest.raises(PoolError, match=r"24 beams of .* do not fit the KV that is free"):
            llm.beam_search(prompt, beam_width=24, max_tokens=20)
        llm.engine.check_integrity()
        assert llm.engine.status().kv_blocks_free == free


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with LLM(write(tmp_path / "m"), context=CONTEXT, draft="off", planned=False) as llm:
        for options, why in (
            ({"beam_width": 0}, "1 to 64 beams"),
            ({"beam_width": 2, "n": 3}, "3 answers are asked for, of 2 beams"),
            ({"max_tokens": 0}, "max_tokens is 0"),
            ({"length_penalty": float("nan")}, "length_penalty"),
            ({"length_penalty": "1"}, r"length_penalty must be .*, not str"),
            ({"max_tokens": True}, "max_tokens must be"),
        ):
            with pytest.raises(UsageError, match=why):
                llm.beam_search([1, 2, 3], **options)  # type: ignore[arg-type]
        with pytest.raises(ContextExceeded):
            llm.beam_search([1, 2, 3], max_tokens=CONTEXT)
