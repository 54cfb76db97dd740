"""Rows that read some blocks of what is kept of all positions: which, with the same bits wherever
these lie and however a text is cut, and with less read from the disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_models
import strata._native as _native
from strata import LLM, SamplingParams
from strata.backends.base import KV_BLOCK
from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KV_TYPES, KVType
from strata.backends.reference import ReferenceBackend
from strata.backends.reference.attention import chosen_blocks
from strata.backends.settings import BackendSettings, Reading
from strata.errors import UsageError
from strata.models.kv_read import with_kv_read
from strata.plan import Plan, from_json, to_json
from strata.program import Model, PagedKV, Recurrent, Shared
from support.command_line import strata
from support.hybrid_model import VOCABULARY, hybrid_model
from support.small_programs import Floats
from support.state_runs import StateRuns
from support.streaming import faults

ROWS = 160
READ = 5 * KV_BLOCK
TEXT = np.random.default_rng(3).integers(0, VOCABULARY, 900).tolist()
CUTS = [1, 2, 61, 1, 130, 160, 1, 1, 1, 59, 1, 1, 150]


def runs(
    model: Model, weights: object, kv_type: KVType | None = None, slots: int = 0, folder: str = ""
) -> StateRuns:
    how = BackendSettings(
        max_tokens=ROWS,
        max_logit_rows=ROWS,
        kv_slots=slots,
        kv_directory=folder,
        reading=Reading(threads=3),
    )
    backend = CpuBackend(threads=2, settings=how)
    return StateRuns(model, weights, backend, blocks=60, kv_type=kv_type)  # type: ignore[arg-type]


def logits_of(run: StateRuns, cuts: list[int]) -> Floats:
    """Of TEXT, in steps of so many rows and at last of as many as a step may have."""
    sequence, rows, at, cuts = run.sequence(), [], 0, list(cuts)
    while at < len(TEXT):
        count = cuts.pop(0) if cuts else ROWS
        rows += run.run([(sequence, TEXT[at : at + count])])
        at += count
    return np.concatenate(rows)


@pytest.mark.parametrize("kv_type", KV_TYPES, ids=lambda t: t.name)
def test_bits_depend_on_no_cut_and_on_no_place(kv_type: KVType, tmp_path: Path) -> None:
    """Layers of all kinds; a file has most blocks, of which fewer are read than of all."""
    plain, weights = hybrid_model()
    model = with_kv_read(plain, READ - 5)
    whole = logits_of(runs(model, weights, kv_type), [])
    assert np.isfinite(whole).all()
    assert np.array_equal(logits_of(runs(model, weights, kv_type), CUTS), whole)
    read = []
    for each in (model, plain):
        tiered = runs(each, weights, kv_type, slots=5, folder=str(tmp_path))
        with faults(delay_us=100, seed=1):
            found = logits_of(tiered, [*CUTS, *[1] * 40])
        assert np.array_equal(found, whole) == (each is model)
        read.append(tiered.state.native.read_bytes)  # type: ignore[attr-defined]
    assert 0 < read[0] < 0.9 * read[1]
    if kv_type.name == "f16":
        # Keys that lie between two numbers of a type may be rounded to either, and int4 has bounds
        # of rotated heads.
        oracle = StateRuns(model, weights, ReferenceBackend(), kv_type=kv_type)
        assert np.abs(logits_of(oracle, [150]) - whole).max() < 0.05
        exact = logits_of(runs(plain, weights, kv_type), [])
        assert np.array_equal(exact[:READ], whole[:READ])
        assert np.abs(exact - whole)[READ + KV_BLOCK :].max() > 0.5


@pytest.mark.parametrize("isa", _native.available_isas())
def test_every_instruction_set_chooses_as_the_reference(isa: str) -> None:
    """Also where heads are no whole vectors, and values are part of keys."""
    model, weights = hybrid_model([PagedKV(1, 40, 32, v_in_k=True), PagedKV(2, 24, 24)])
    model = with_kv_read(model, 4 * KV_BLOCK)
    how = BackendSettings(max_tokens=ROWS, max_logit_rows=ROWS)
    backend = CpuBackend(threads=2, isa=isa, settings=how)
    found = logits_of(StateRuns(model, weights, backend), [])
    assert np.abs(logits_of(StateRuns(model, weights, ReferenceBackend()), []) - found).max() < 0.05


def test_reading_enough_has_the_bits_of_reading_all() -> None:
    model, weights = hybrid_model()
    plain = logits_of(runs(model, weights), [])
    assert np.array_equal(logits_of(runs(with_kv_read(model, 900), weights), CUTS), plain)


def test_branches_and_those_that_share_blocks_read_the_same(tmp_path: Path) -> None:
    """Branches fill blocks that others began; a block is copied with its bounds."""
    state = (PagedKV(2, 16, 16), PagedKV(1, 40, 32, v_in_k=True), Shared(0))

    def run(slots: int) -> list[bytes]:
        model, weights = hybrid_model(state)
        model = with_kv_read(model, 4 * KV_BLOCK)
        these = runs(model, weights, slots=slots, folder=str(tmp_path))
        random = np.random.default_rng(4)
        first, out = these.sequence(), []
        for rows in (150, 160, 140, 160, 130):
            out += these.run([(first, random.integers(0, VOCABULARY, rows).tolist())])
        for _ in range(4):
            chain = random.integers(0, VOCABULARY, 30).tolist()
            branch = these.branch(first, first.length + 20, 0)
            rest = random.integers(0, VOCABULARY, 50).tolist()
            out += these.run([(first, chain), (branch, rest)])
        return [x.tobytes() for x in out]

    assert run(20) == run(0)


def test_blocks_are_those_whose_bounds_allow_most() -> None:
    """By a definition that is computed in another way; two of equal weight: the later."""
    random = np.random.default_rng(8)
    q = random.standard_normal((3, 4, 8)).astype(np.float32)
    k = random.standard_normal((10 * KV_BLOCK, 2, 8)).astype(np.float16).astype(np.float32)
    past = 9 * KV_BLOCK + 5
    found = chosen_blocks(q, k, past, 5)
    for row in range(3):
        weights = np.zeros(10)
        for head in range(4):
            best = []
            for block in range(1, 8):
                keys = k[block * KV_BLOCK : (block + 1) * KV_BLOCK, head // 2]
                corner = np.where(q[row, head] > 0, keys.max(0), keys.min(0))
                best.append(float(q[row, head] @ corner))
            weights[1:8] += np.exp(np.array(best) - max(best))
        want = {0, 8, 9, *np.argsort(-weights)[:2]}
        assert set(np.flatnonzero(found[row])) == want
    same = np.tile(k[:KV_BLOCK], (10, 1, 1))
    assert set(np.flatnonzero(chosen_blocks(q[:1], same, past, 5)[0])) == {0, 6, 7, 8, 9}


def test_what_cannot_be_read_in_part_is_refused() -> None:
    model, _ = hybrid_model([PagedKV(1, 16, 16, window=70), Recurrent(((3, 48),))])
    with pytest.raises(UsageError, match="no layer of this 'hybrid' model keeps KV of all"):
        with_kv_read(model, 512)
    with pytest.raises(UsageError, match="256 positions at least"):
        with_kv_read(hybrid_model()[0], 255)


PARAMS = SamplingParams(max_tokens=8, logprobs=1, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    golden = make_tiny_models.golden("llama")
    return make_tiny_models.write_directory(
        folder, replace(golden, config={**golden.config, "max_position_embeddings": 1024})
    )


@pytest.mark.parametrize("seen", [{"kv_window": "100:5"}, {"kv_read": 256}], ids=str)
def test_a_plan_that_was_kept_says_what_rows_see(
    seen: dict[str, Any], path: Path, tmp_path: Path
) -> None:
    prompt = np.random.default_rng(6).integers(20, 200, 600).tolist()
    with LLM(path, context=700, planned=True, threads=2, **seen) as llm:
        plan, answer = llm.plan, llm.generate(prompt, PARAMS)
        assert plan is not None
    plan = from_json(Plan, json.loads(json.dumps(to_json(plan))))
    with LLM(path, plan=plan, kv_store=tmp_path / "kv") as llm:
        assert llm.generate(prompt, PARAMS).logprobs == answer.logprobs
    # What is kept comes back with its bounds, and only where as much is read.
    with LLM(path, plan=plan, kv_store=tmp_path / "kv") as llm:
        again = llm.generate(prompt, PARAMS)
        assert (again.cached_tokens, again.logprobs) == (576, answer.logprobs)
    with LLM(path, context=700, threads=2, kv_store=tmp_path / "kv") as llm:
        plain = llm.generate(prompt, PARAMS)
        assert plain.cached_tokens == 0
        assert plain.logprobs != answer.logprobs
    with pytest.raises(UsageError, match=r"this plan was made with .* leave these to it"):
        LLM(path, plan=plan, kv_window=50)
    with pytest.raises(UsageError, match="give one of the two"):
        LLM(path, kv_window=50, kv_read=256)


@pytest.mark.slow
def test_verbs_take_either(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"word {i * i}" for i in range(900)))
    requests = tmp_path / "requests.jsonl"
    body = {"model": "m", "prompt": "some words", "max_tokens": 3}
    requests.write_text(
        json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body})
    )
    model = str(path)
    quality = ("quality", model, "--base", model, "--text", str(text), "-c", "600", "--chunks", "1")
    losses = []
    for seen in (("--kv-window", "90"), ("--kv-read", "256"), ()):
        answers = tmp_path / f"answers-{len(losses)}.jsonl"
        for verb in (
            ("bench", model, "--prompt", "400", "--gen", "2", "--repeat", "1"),
            ("batch", model, str(requests), str(answers)),
            ("perplexity", model, "--text", str(text), "-c", "600", "--chunks", "1"),
            ("plan", model, "--context", "700"),
        ):
            done = strata(*verb, *seen)
            assert done.returncode == 0, (verb, done.stderr)
        done = strata(*quality, *seen, "--json")
        assert done.returncode == 0, done.stderr
        losses.append(json.loads(done.stdout)["models"][0]["kl"]["value"])
    assert min(losses[:2]) > 1e-6 > abs(losses[2])
    done = strata("run", model, "abc", "--raw", "--max-tokens", "2", "--kv-read", "300")
    assert "layers read blocks of 320 positions" in done.stderr
    done = strata("run", model, "abc", "--kv-read", "200")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = strata("serve", model, model, "--kv-read", "512")
    assert "--kv-read is for one model" in done.stderr
