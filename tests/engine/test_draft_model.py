"""Answers for which a second model guesses are those without, to the bit, and it keeps to its
room.

A model that guesses for itself is always right, also where answers are sampled; one of other
weights is nearly always wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import make_tiny_hybrids
import make_tiny_models
from strata import LLM, SamplingParams
from strata.backends.base import NoBooks
from strata.backends.registry import backend_class
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.cli.verbs import root
from strata.decode import NO_DRAFT, Draft, Sample, Sampler
from strata.engine import Engine, KVSettings, Runner
from strata.engine.draft_files import open_draft_model
from strata.engine.draft_model import DraftModel
from strata.engine.drafting import Drafting
from strata.errors import UsageError
from strata.formats import open_model
from strata.models import build_model
from strata.synth import SHAPES, write_model

GREEDY = SamplingParams(max_tokens=20, logprobs=2, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1.1, top_p=0.95, repetition_penalty=1.2, seed=9)

Prompt = tuple[int, ...]


class Nothing:
    """Guesses nothing."""

    def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
        return NO_DRAFT

    def end(self, id: int, tokens: Sequence[int]) -> None:
        pass


def runner_of(path: Path, context: int) -> Runner:
    file = open_model(path)
    settings = BackendSettings(max_tokens=64, max_logit_rows=8, positions=context, parallel=8)
    backend = backend_class("cpu").create(2, None, settings, NoBooks())
    return Runner(backend, build_model(file, context), WeightSource(file), logit_rows=8)


def answers(
    runner: Runner,
    asked: Sequence[Prompt],
    p: SamplingParams,
    model: DraftModel | None,
    **more: object,
) -> tuple[list[list[Sample]], Engine]:
    drafting = None if model is None else Drafting(Nothing(), most=5, model=model)
    engine = Engine(
        runner,
        context=128,
        parallel=len(asked),
        token_budget=64,
        drafting=drafting,
        kv=KVSettings(prefix_cache=False, **more),  # type: ignore[arg-type]
    )
    requests = [engine.submit(prompt, p) for prompt in asked]
    while engine.busy:
        engine.step()
        engine.check_integrity()
    return [request.output for request in requests], engine


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("p", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_model_changes_no_answer(name: str, p: SamplingParams, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    path = make_tiny_models.write_directory(tmp_path / "m", golden)
    target = runner_of(path, 128)
    random = np.random.default_rng(3)
    lengths = (90, 30, 2)
    asked = [tuple(random.integers(0, target.model.vocab_size, n).tolist()) for n in lengths]
    plain, _ = answers(target, asked, p, None)
    model = DraftModel(
        runner_of(path, 128),
        open_model(path),
        parallel=2,
        vocabulary=target.model.vocab_size,
        least=0.0,
    )
    # Room for two: one follows nobody, or they take turns.
    guessed, engine = answers(target, asked, p, model)
    status = engine.status()
    assert guessed == plain
    assert status.draft_tokens_kept == status.draft_tokens > 20
    engine.close()


def test_who_gives_way_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden("llama"))
    target = runner_of(path, 128)
    random = np.random.default_rng(6)
    size = target.model.vocab_size
    asked = [tuple(random.integers(0, size, n).tolist()) for n in (61, 62, 63)]
    plain, _ = answers(target, asked, SAMPLED, None)
    model = DraftModel(
        runner_of(path, 128), open_model(path), parallel=2, vocabulary=size, least=0.0
    )
    guessed, engine = answers(target, asked, SAMPLED, model, blocks=(4,))
    assert guessed == plain
    assert engine.status().preemptions > 0
    assert engine.status().draft_tokens_kept > 10
    engine.close()


def test_guesses_that_are_wrong_are_written_over(tmp_path: Path) -> None:
    golden = make_tiny_models.golden("llama")
    path = make_tiny_models.write_directory(tmp_path / "m", golden)
    target = runner_of(path, 128)
    random = np.random.default_rng(4)
    asked = [tuple(random.integers(0, target.model.vocab_size, n).tolist()) for n in (40, 9)]
    plain, _ = answers(target, asked, GREEDY, None)
    other = runner_of(path, 128)

    class Sometimes(DraftModel):
        """Is wrong every second time."""

        calls = 0

        def propose(self, texts, most, others=1.0):  # type: ignore[no-untyped-def]
            drafts = super().propose(texts, most, others)
            self.calls += 1
            return {id: self._wrong(draft) for id, draft in drafts.items()}

        def _wrong(self, draft: Draft) -> Draft:
            if self.calls % 2 or len(draft.tokens) < 2:
                return draft
            changed = (draft.tokens[0], (draft.tokens[1] + 1) % 50, *draft.tokens[2:])
            return replace(draft, tokens=changed)

    model = Sometimes(
        other, open_model(path), parallel=2, vocabulary=target.model.vocab_size, least=0.0
    )
    guessed, engine = answers(target, asked, GREEDY, model)
    status = engine.status()
    assert guessed == plain
    assert 0 < status.draft_tokens_kept < status.draft_tokens
    engine.close()


@pytest.mark.parametrize("p", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_branch_is_right_where_the_first_choice_is_not(p: SamplingParams, tmp_path: Path) -> None:
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden("llama"))
    target = runner_of(path, 128)
    random = np.random.default_rng(4)
    asked = [tuple(random.integers(0, target.model.vocab_size, n).tolist()) for n in (70, 9)]
    plain, _ = answers(target, asked, p, None)
    sweeps, branches = list[int](), list[int]()

    class Unsure(DraftModel):
        """Is sure, and takes the two likeliest tokens for each other at every third position."""

        others = 1.0

        def _run(self, parts, *, wanted=True):  # type: ignore[no-untyped-def]
            rows = super()._run(parts, wanted=wanted)
            for id, row in rows.items():
                row *= 30
                follower = self._followers[id]
                if (follower.kv.length + len(follower.ahead) + len(parts[id])) % 3 == 0:
                    first, second = np.argsort(-row)[:2]
                    row[[first, second]] = row[[second, first]]
            return rows

        def propose(self, texts, most, others=1.0):  # type: ignore[no-untyped-def]
            drafts = super().propose(texts, most, self.others)
            branches.append(sum(draft.parents is not None for draft in drafts.values()))
            assert all(len(draft.chains()) <= 2 for draft in drafts.values())
            return drafts

    for others in (1.0, 0.0):
        model = Unsure(
            runner_of(path, 128),
            open_model(path),
            parallel=2,
            vocabulary=target.model.vocab_size,
            least=0.0,
        )
        model.others = others
        branches.clear()
        guessed, engine = answers(target, asked, p, model)
        assert guessed == plain
        assert (sum(branches) > 0) == (others < 1)
        sweeps.append(engine.status().sweeps)
        engine.close()
    if p is GREEDY:
        assert sweeps[1] < sweeps[0]


def test_many_that_are_some_tokens_behind_go_on_together(tmp_path: Path) -> None:
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden("llama"))
    random = np.random.default_rng(5)
    texts = {id: random.integers(0, 200, 40).tolist() for id in range(16)}
    said = []
    for parallel in (16, 1):
        with open_model(path) as target:
            model = build_model(target, 128)
            file = open_draft_model(1, target, model, None, parallel=parallel, threads=2)  # type: ignore[arg-type]
        guesser = file.load(250, None)
        found: dict[int, Draft] = {}
        for ids in [[*texts]] if parallel > 1 else [[id] for id in texts]:
            for length in (20, 28):
                for id in ids:
                    guesser.begin(id, Sampler(GREEDY, texts[id], 250))
                parts = {id: texts[id][:length] for id in ids}
                found |= guesser.propose(parts, dict.fromkeys(ids, 2))
            for id in ids:
                guesser.end(id)
        guesser.close()
        said.append([found[id].tokens for id in texts])
    assert said[0] == said[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path) -> tuple[Path, Path]:
    """A model, and one of the same vocabulary and other weights."""
    folder = tmp_path_factory.mktemp("drafts")
    paths = (folder / "target.gguf", folder / "draft.gguf")
    with open_model(smollm2_path) as source:
        tokenizer = dict(source.metadata)
    for seed, path in enumerate(paths):
        write_model(SHAPES["tiny-llama"], path, recipe="F32", tokenizer=tokenizer, seed=seed)
    return paths


def test_it_is_in_the_ledger(files: tuple[Path, Path]) -> None:
    target, draft = files
    prompt, p = list(range(3, 60)), replace(GREEDY, max_tokens=30)
    with LLM(target, draft="off", context=128) as llm:
        plain = llm.generate(prompt, p)
        before = llm.ledger.owned.get("drafts", 0)
    with LLM(target, draft_model=draft, context=128) as llm:
        assert llm.ledger.owned["drafts"] - before > draft.stat().st_size
        assert llm.generate(prompt, p).logprobs == plain.logprobs
        llm.engine.check_integrity()
        llm.runtime.check_integrity()


@pytest.mark.slow
def test_it_is_in_the_plan_and_keeps_to_a_tight_budget(files: tuple[Path, Path]) -> None:
    target, draft = files
    prompt, p = list(range(3, 60)), replace(GREEDY, max_tokens=30)
    with LLM(target, draft_model=target, context=128, planned=True) as llm:
        assert llm.plan is not None
        share = llm.plan.predicted.memory.drafts
        assert share > draft.stat().st_size
        assert llm.ledger.owned["drafts"] == share
        assert any("by a model of" in c.value for c in llm.plan.choices if c.name == "guesses")
        plain = llm.generate(prompt, p)
        llm.runtime.check_integrity()
        tight = llm.plan.predicted.memory.total
    with LLM(target, draft_model=draft, context=128, memory=tight) as llm:
        assert llm.generate(prompt, p).logprobs == plain.logprobs
        llm.runtime.check_integrity()


def test_who_cannot_guess_is_refused_by_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    target, draft = files
    with pytest.raises(UsageError, match="leave one of them out"):
        LLM(target, draft_model=draft, draft="off")
    other = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden("llama"))
    with pytest.raises(UsageError, match=r"cannot guess for target\.gguf: .* same vocabulary"):
        LLM(target, draft_model=other)
    recurrent = make_tiny_hybrids.write(tmp_path / "m.gguf", "rwkv7")
    with pytest.raises(UsageError, match=r"m\.gguf cannot guess .* recurrent state"):
        LLM(target, draft_model=recurrent)


def test_the_first_layers_of_a_model_guess_for_it(tmp_path: Path) -> None:
    golden = make_tiny_models.golden("llama")
    path = make_tiny_models.write_directory(tmp_path / "m", golden)
    prompt, params = [3, 4, 5, 6], replace(GREEDY, max_tokens=12)
    said = []
    for draft_model in (None, "self:1"):
        with LLM(path, context=64, draft_model=draft_model) as llm:
            drafting = llm.engine.drafting
            if draft_model is not None:
                assert drafting is not None
                assert drafting.model is not None
                drafting.costs = None
                whole, part = llm.model, drafting.model._runner.model
                assert len(part.segments) == 3 < len(whole.segments)
                assert part.segments[1] == whole.segments[1]
                assert len(part.state) == 1
            said.append(llm.generate(prompt, params).token_ids)
            if draft_model is not None:
                assert llm.engine.status().draft_tokens > 0
    assert said[0] == said[1]
    with pytest.raises(UsageError, match="may guess for it"):
        LLM(path, context=64, draft_model="self:99")
    for wrong in ("self:0", "self:", "self:-1", "self:x"):
        with pytest.raises(UsageError, match="no number of layers"):
            LLM(path, context=64, draft_model=wrong)


def test_a_model_of_few_bits_guesses_for_the_one_it_was_made_of(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """A file of the quantiser's has the vocabulary of its base, which is all that is asked."""
    base, small = files[0], tmp_path / "small.gguf"
    command = ["quantize", str(base), str(small), "--type", "Q4_0", "--quiet"]
    done = CliRunner().invoke(root, command)
    assert done.exit_code == 0, done.output
    prompt, params, said = list(range(3, 30)), replace(GREEDY, max_tokens=16), []
    for draft_model in (None, small):
        with LLM(base, context=64, draft_model=draft_model) as llm:
            if draft_model is not None:
                assert llm.engine.drafting is not None
                llm.engine.drafting.costs = None
            said.append(llm.generate(prompt, params).token_ids)
            assert draft_model is None or llm.engine.status().draft_tokens_kept > 0
    assert said[0] == said[1]
