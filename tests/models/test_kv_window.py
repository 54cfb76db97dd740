"""A window over all positions with the first ones kept: what rows see, as which positions, and that
nothing but the window changes an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import make_tiny_hybrids
import make_tiny_models
from strata import LLM, SamplingParams
from strata.backends.base import KV_BLOCK
from strata.backends.cpu.backend import CpuBackend
from strata.backends.kv_types import KV_TYPES, KVType
from strata.backends.reference import ReferenceBackend
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import open_model
from strata.kv import window_blocks
from strata.models import build_model
from strata.models.first_layers import first_layers
from strata.models.kv_read import with_kv_read
from strata.models.kv_window import KVWindow, with_kv_window
from strata.program import Model, PagedKV, Recurrent
from support import special_models
from support.command_line import strata
from support.forward import step
from support.hybrid_model import VOCABULARY, hybrid_model
from support.sampling import every
from support.small_programs import Floats
from support.state_runs import StateRuns

ROWS = 160
TEXT = np.random.default_rng(3).integers(0, VOCABULARY, 700).tolist()


def runs(model: Model, weights: object, kv_type: KVType | None = None, **more: object) -> StateRuns:
    how = BackendSettings(max_tokens=ROWS, max_logit_rows=ROWS)
    backend = CpuBackend(threads=2, settings=how)
    return StateRuns(model, weights, backend, kv_type=kv_type, **more)  # type: ignore[arg-type]


def logits_of(run: StateRuns, cuts: list[int]) -> Floats:
    """Of TEXT, in steps of so many rows and at last of as many as a step may have."""
    sequence, rows, at = run.sequence(), [], 0
    while at < len(TEXT):
        count = cuts.pop(0) if cuts else ROWS
        rows += run.run([(sequence, TEXT[at : at + count])])
        at += count
    return np.concatenate(rows)


@pytest.mark.parametrize("kept", [KVWindow(100, 70), KVWindow(90, 4)], ids=str)
@pytest.mark.parametrize("kv_type", every(2, KV_TYPES), ids=lambda t: t.name)
def test_bits_depend_on_no_cut_and_on_nothing_given_back(kept: KVWindow, kv_type: KVType) -> None:
    """What was given back is full of NaN here, and blocks of other layers share the run."""
    model, weights = hybrid_model()
    model = with_kv_window(model, kept, 4096)
    assert {(g.window, g.beginning) for g in model.groups if not g.recurrent} == {
        (kept.window, kept.sinks),
        (150, 0),
        (70, 0),
    }
    whole = logits_of(runs(model, weights, kv_type, keeps_all=True), [])
    assert np.isfinite(whole).all()
    cuts = [1, 2, 61, 1, 130, 160, 1, 1, 1, 59, 1, 1, 150]
    assert np.array_equal(logits_of(runs(model, weights, kv_type), cuts), whole)
    if kv_type.name == "f16":
        # Keys that lie between two numbers of a type may be rounded to either.
        oracle = StateRuns(model, weights, ReferenceBackend(), kv_type=kv_type)
        assert np.abs(logits_of(oracle, [150]) - whole).max() < 0.05
        alone = with_kv_window(hybrid_model()[0], KVWindow(kept.window, 0), 4096)
        other = logits_of(runs(alone, weights, kv_type), [])
        assert np.abs(other - whole)[kept.window + kept.sinks :].max() > 1


def test_a_text_within_the_window_has_the_bits_of_no_window() -> None:
    model, weights = hybrid_model()
    plain = logits_of(runs(model, weights), [])
    wide = with_kv_window(model, KVWindow(690, 10), 4096)
    assert np.array_equal(logits_of(runs(wide, weights), []), plain)
    narrow = logits_of(runs(with_kv_window(model, KVWindow(600, 10), 4096), weights), [])
    same = [np.array_equal(a, b) for a, b in zip(narrow, plain, strict=True)]
    assert all(same[:610])
    assert not any(same[611:])


def last_logits(model: Model, source: WeightSource, tokens: list[int]) -> Floats:
    backend = ReferenceBackend()
    segments = backend.load(model.segments, source)
    state = backend.state_cache(model.state, (-(-len(tokens) // KV_BLOCK),) * len(model.groups))
    values, part = {}, step(tokens, groups=len(model.groups))
    for segment in segments:
        values = backend.run(segment, part, state, values)
    return backend.export(values, ("logits",))["logits"]


@pytest.mark.parametrize("name", ["llama", "llama_yarn", "olmo2", "phi3_short"])
def test_positions_are_those_within_the_cache(name: str, tmp_path: Path) -> None:
    """With one layer a row has what it would have behind a text of the first tokens and those of
    its window alone: the source's definition, computed in another way."""
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden(name))
    window, sinks = 20, 3
    with open_model(path) as file:
        built = build_model(file)
        count = sum(s.name.startswith("layer.") for s in built.segments)
        model = first_layers(built, 1) if count > 1 else built
        source = WeightSource(file)
        kept = with_kv_window(model, KVWindow(window, sinks), built.context_length)
        text = np.random.default_rng(5).integers(3, 200, 60).tolist()
        found = last_logits(kept, source, text)
        plain = last_logits(model, source, text)
        size = np.abs(plain).max()
        for row in (10, 22, 23, 40, 59):
            cache = text[: row + 1] if row < window + sinks else []
            cache = cache or text[:sinks] + text[row - window + 1 : row + 1]
            want = last_logits(model, source, cache)[-1]
            assert np.abs(found[row] - want).max() < 2e-4 * size, row
        # It is no approximation of what all positions give.
        assert np.abs(found[59] - plain[59]).max() > 1e-3 * size


def test_a_model_without_such_layers_is_refused() -> None:
    model, _ = hybrid_model([PagedKV(1, 16, 16, window=70), Recurrent(((3, 48),))])
    with pytest.raises(UsageError, match="no layer of this 'hybrid' model keeps KV of all"):
        with_kv_window(model, KVWindow(100), 4096)


def test_a_model_that_chooses_keys_itself_is_refused(tmp_path: Path) -> None:
    """As its indexer was trained to; where that keeps all positions there is nothing to refuse."""
    with open_model(special_models.write(tmp_path / "m.gguf", "deepseek32")) as file:
        model = build_model(file)
    assert any(isinstance(s, PagedKV) and s.index for s in model.state)
    with pytest.raises(UsageError, match="chooses itself which keys a row sees"):
        with_kv_window(model, KVWindow(100), 4096)
    with pytest.raises(UsageError, match="chooses itself which keys a row sees"):
        with_kv_read(model, 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "one position at least"),
        ("100:513", "512 first ones at most"),
        ("many", "a number of positions"),
        ("100:", "a number of positions"),
        ("-5", "a number of positions"),
        ("9999999999", "a number of positions"),
        ("٣", "a number of positions"),
    ],
)
def test_what_is_no_window_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        KVWindow.parse(text)
    assert "\n" not in str(caught.value)


def test_a_window_is_read_as_people_write_it() -> None:
    assert KVWindow.parse("1024") == KVWindow(1024, 4) == KVWindow.parse("1024:4")
    assert KVWindow.parse("100:0") == KVWindow(100, 0)


PARAMS = SamplingParams(max_tokens=8, logprobs=1, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    return make_tiny_models.write_directory(folder, make_tiny_models.golden("llama"))


def test_answers_go_on_beyond_the_trained_context_in_the_same_memory(
    path: Path, tmp_path: Path
) -> None:
    with open_model(path) as file:
        trained = build_model(file).context_length
    prompt = np.random.default_rng(6).integers(20, 200, 2 * trained + 90).tolist()
    context = len(prompt) + 200
    with pytest.raises(UsageError, match=str(trained)):
        LLM(path, context=context)
    answers = []
    how = {"context": context, "kv_window": "100:5", "threads": 2, "kv_store": tmp_path / "kv"}
    for known in (0, len(prompt) // KV_BLOCK * KV_BLOCK):
        with LLM(path, **how) as llm:  # type: ignore[arg-type]
            (group,) = llm.model.groups
            output = llm.generate(prompt, PARAMS)
            assert output.cached_tokens == known
            answers.append((output.token_ids, output.logprobs))
            memory = llm.engine._memory.manager
            assert memory.needed(context) == [window_blocks(group, llm.engine.token_budget)]
            # A conversation goes on from what is in memory.
            longer = [*prompt, *output.token_ids, 7, 8, 9]
            assert llm.generate(longer, PARAMS).cached_tokens >= known
    assert answers[0] == answers[1]
    # What was kept for this window is of no use to another one, or to none.
    with LLM(path, **{**how, "kv_window": 90}) as llm:  # type: ignore[arg-type]
        assert llm.generate(prompt, PARAMS).cached_tokens == 0


@pytest.mark.parametrize("name", ["llama", "latent"])
def test_an_answer_within_the_window_is_the_one_without(
    name: str, path: Path, tmp_path: Path
) -> None:
    """Also where keys are latent, and their query is put together from parts."""
    prompt = [5 + i % 40 for i in range(70)]
    if name == "latent":
        path = make_tiny_hybrids.write(tmp_path / "m.gguf", "kimi-linear", "llama")
    answers = []
    for window in (None, 80, 60):
        with LLM(path, context=120, kv_window=window, threads=2) as llm:
            answers.append(llm.generate(prompt, PARAMS).logprobs)
    assert answers[0] == answers[1] != answers[2]


def test_people_ask_for_it_and_are_told_what_it_means(path: Path) -> None:
    asked = ("run", str(path), "abc", "--raw", "--max-tokens", "2", "--context", "5000")
    done = strata(*asked, "--kv-window", "100")
    assert done.returncode == 0, done.stderr
    assert "layers see the last 100 positions and the first 4" in done.stderr
    for window in ("0", "9:900"):
        done = strata(*asked, "--kv-window", window)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = strata("serve", str(path), str(path), "--kv-window", "100")
    assert done.returncode == 2
    assert "--kv-window is for one model" in done.stderr


def test_learned_positions_end_where_they_end(tmp_path: Path) -> None:
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden("gpt2"))
    with pytest.raises(UsageError, match=r"has learned .* positions, and a context of 5000"):
        LLM(path, context=5000, kv_window=50)
    with LLM(path, context=60, kv_window=20, threads=2) as llm:
        assert len(llm.generate(list(range(20, 60)), PARAMS).token_ids) == 8
