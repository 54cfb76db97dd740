"""Experts that are read when a router has chosen them: the same bits, as many bytes as misses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import make_tiny_variants
from strata.backends.base import Activations, BackendStats, Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.backends.weights import WeightReadError, WeightSource
from strata.formats import ModelFile, open_model
from strata.models import build_model
from strata.plan.expert_policies import DECAYS, SURE_OF, Visit
from strata.synth import SHAPES, write_model
from support.expert_policies import DecayingFrequency, replay
from support.forward import Forward
from support.streaming import faults, forward, logits, settings, units

Make = Callable[[str, str | None], Path]
TOKENS = [int(t) for t in np.random.default_rng(3).integers(20, 250, 24)]
FEW = TOKENS[:6]
MIXTURES = ["tiny-qwen3moe", "tiny-mixtral"]
RECIPES = ["Q4_K_M", None]
"""A GGUF file, and a directory that keeps experts apart."""

ALL = 1000
"""Slots for every expert of these models."""


def experts(file: ModelFile) -> list[str]:
    """Units that a router chooses from."""
    every = (unit for segment in build_model(file).segments for unit in segment.units)
    return [unit.name for unit in every if unit.reads == "routed"]


def counts(run: Forward) -> BackendStats:
    assert isinstance(run.backend, CpuBackend)
    return run.backend.stats()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", MIXTURES)
def test_any_number_of_slots(name: str, recipe: str | None, make_model: Make) -> None:
    with open_model(make_model(name, recipe)) as file:
        want = logits(file, None, TOKENS)
        for slots in (1, 2, 3, 9, 17, ALL):
            names = units(file) if slots % 2 else experts(file)
            how = settings(names, slots=slots, request=1 << 15, direct=slots > 2)
            run = forward(file, how, threads=1 + slots % 4)
            with faults(delay_us=100, seed=slots):
                for chunks in (None, [1, 7, 16]):
                    assert run.logits(TOKENS, chunks).tobytes() == want.tobytes()
                one = run.logits(FEW, [1] * len(FEW))
                assert one.tobytes() == want[: len(FEW)].tobytes()


ROUTED = [
    name
    for name in make_tiny_variants.names()
    if name.endswith("moe") or name in ("bailingmoe2", "olmoe", "dots1", "deepseek", "arctic")
]


@pytest.mark.parametrize("name", ROUTED)
def test_every_router(name: str, tmp_path: Path) -> None:
    with open_model(make_tiny_variants.write(tmp_path / "m.gguf", name)) as file:
        names = experts(file)
        assert names
        few = make_tiny_variants.tokens()[:6]
        want = logits(file, None, few)
        for slots in (1, 4):
            run = forward(file, settings(names, slots=slots, request=1 << 15), threads=3)
            with faults(delay_us=100, seed=slots):
                assert run.logits(few).tobytes() == want.tobytes()
                if run.model.causal:
                    assert run.logits(few, [1] * len(few)).tobytes() == want.tobytes()


def assert_held_once(run: Forward) -> None:
    """Biases of experts are some megabytes a layer in large models: native code has no copies."""
    found = 0
    for segment in run.segments:
        floats = segment.floats  # type: ignore[attr-defined]
        others = [sys.getrefcount(a) for name, a in floats.items() if "_exps" not in name]
        biases = [sys.getrefcount(a) for name, a in floats.items() if "_exps" in name]
        assert not biases or min(biases) > max(others)
        found += len(biases)
    assert found


@pytest.mark.parametrize("recipe", ["MXFP4", "BF16"])
def test_experts_with_biases_and_clamps(recipe: str, smollm2_path: Path, tmp_path: Path) -> None:
    """gpt-oss's, small."""
    full, path = SHAPES["gpt-oss-20b"], tmp_path / "model.gguf"
    keys = {**full.keys, "expert_feed_forward_length": 96}
    sizes = {"layers": 2, "width": 256, "ffn": 96, "heads": 4, "kv_heads": 2, "vocab": 512}
    shape = replace(full, experts=8, keys=keys, **sizes)
    with open_model(smollm2_path) as source:
        write_model(shape, path, recipe=recipe, tokenizer=dict(source.metadata))
    with open_model(path) as file:
        want = logits(file, None, TOKENS)
        for slots in (1, 3, 9, ALL):
            run = forward(file, settings(experts(file), slots=slots, request=1 << 14), threads=4)
            assert_held_once(run)
            with faults(delay_us=100, seed=slots):
                assert run.logits(TOKENS).tobytes() == want.tobytes()
                assert run.logits(TOKENS, [3] * 8).tobytes() == want.tobytes()


@pytest.mark.parametrize("slots", [2, 7, ALL])
@pytest.mark.parametrize("name", MIXTURES)
def test_sixteen_sequences(name: str, slots: int, make_model: Make) -> None:
    with open_model(make_model(name, "Q4_K_M")) as file:
        run = forward(file, settings(experts(file), slots=slots, request=1 << 15))
        parts = [TOKENS[i : i + 3] for i in range(16)]
        want = np.concatenate([logits(file, None, part) for part in parts])
        state = run.backend.state_cache(run.model.state, (len(parts),))
        spans = tuple(Span(3 * i, 3, 0, (np.array([i], np.int32),)) for i in range(len(parts)))
        tokens = np.array([t for part in parts for t in part], np.int32)
        positions = np.tile(np.arange(3, dtype=np.int32), len(parts))
        together = Step(tokens, positions, spans, np.arange(len(tokens), dtype=np.int32))
        before = counts(run)
        values: Activations = {}
        with faults(delay_us=100, seed=slots):
            for segment in run.segments:
                values = run.backend.run(segment, together, state, values)
        got = run.backend.export(values, ("logits",))["logits"]
        assert got.tobytes() == want.tobytes()
        # Each expert once for all rows, however few slots there are.
        read = counts(run).since(before)
        every = sum(unit.experts for s in run.model.segments for unit in s.units)
        assert 0 < read.expert_misses <= every


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("slots", [1, 2, 5, 12, 30])
def test_hits_are_those_of_the_simulator_and_bytes_those_of_misses(
    name: str, recipe: str | None, slots: int, make_model: Make
) -> None:
    with open_model(make_model(name, recipe)) as file:
        decay = DECAYS[slots % len(DECAYS)]
        how = settings(experts(file), slots=slots, request=1 << 15, direct=True)
        run = forward(file, replace(how, expert_decay=decay))
        profile = CpuBackend.profile(run.model, WeightSource(file))
        routed = [unit for unit in profile.units if unit.experts]
        run.backend.prepare()
        cache = run.backend._experts  # type: ignore[attr-defined]
        cache.record(True)
        with faults(delay_us=300, seed=slots):
            # All rows together, in which the next layer's are read before their turn, come first.
            run.logits(TOKENS)
            run.logits(TOKENS, [8, *[1] * 16])
            run.logits(TOKENS[::-1], [1] * 10 + [14])
        visits = [Visit(*visit) for visit in cache.visits]
        cache.record(False)
        sizes = [unit.experts for unit in routed]
        assert {visit.layer for visit in visits} == set(range(len(routed)))
        said = replay(visits, sizes, slots, DecayingFrequency(sizes, decay), slots // SURE_OF)
        stats = counts(run)
        assert (stats.expert_hits, stats.expert_misses) == (said.hits, said.misses)
        assert said.misses < sum(len(visit.experts) for visit in visits) or slots < 3
        # Nothing else streams: what was read is misses, to the byte, and what was not needed in the
        # end of what was sure to be.
        assert len({unit.expert_bytes for unit in routed}) == 1 or recipe
        if len({unit.expert_bytes for unit in routed}) == 1:
            assert stats.expert_read == said.misses * routed[0].expert_bytes
        assert stats.expert_read <= stats.wanted <= stats.expert_read + stats.wasted_bytes
        needed = sum(len(v.experts) * routed[v.layer].expert_bytes for v in visits)
        assert stats.expert_bytes == needed


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_disk_that_slows_to_a_tenth_changes_no_count(ahead: int, make_model: Make) -> None:
    """In the middle of an answer: the same bits, and what is found, missed and read is the same."""
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        want = logits(file, None, TOKENS)
        said = []
        for times in (0, 10):
            how = settings(experts(file), slots=7, ahead=ahead, request=1 << 14, direct=True)
            run = forward(file, how)
            assert run.logits(FEW, [1] * len(FEW)).tobytes() == want[: len(FEW)].tobytes()
            with faults(slow_times=times):
                assert run.logits(TOKENS).tobytes() == want.tobytes()
                one = run.logits(TOKENS, [1] * len(TOKENS))
                assert one.tobytes() == want.tobytes()
            now = counts(run)
            said.append((now.expert_hits, now.expert_misses, now.expert_read, now.expert_bytes))
            assert now.expert_misses
        assert said[0] == said[1]


def test_what_is_sure_to_be_needed_is_read_before_its_turn(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """Which takes the slots of others: in more layers than two it changes what is found, and so the
    hits tell of it. The same bits."""
    shape, path = replace(SHAPES["tiny-qwen3moe"], layers=5), tmp_path / "model.gguf"
    with open_model(smollm2_path) as source:
        write_model(shape, path, recipe="Q4_K_M", tokenizer=dict(source.metadata))
    many = [int(t) for t in np.random.default_rng(3).integers(20, 250, 100)]
    with open_model(path) as file:
        want = logits(file, None, many)
        found = []
        for sure in (0, 4):
            how = settings(experts(file), slots=24, request=1 << 15)
            run = forward(file, replace(how, expert_sure=sure), threads=2)
            run.backend.prepare()
            cache = run.backend._experts  # type: ignore[attr-defined]
            cache.record(True)
            with faults(delay_us=100, seed=1):
                for _ in range(3):
                    assert run.logits(many).tobytes() == want.tobytes()
            visits = [Visit(*visit) for visit in cache.visits]
            sizes = [shape.experts] * shape.layers
            said = replay(visits, sizes, 24, DecayingFrequency(sizes), sure)
            assert (counts(run).expert_hits, counts(run).expert_misses) == (said.hits, said.misses)
            found.append(said.hits)
        assert found[0] > found[1]


def test_what_is_found_is_not_read(make_model: Make) -> None:
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        run = forward(file, settings(experts(file), slots=ALL))
        # One by one: of more, experts that were not needed in the end may still be read afterwards.
        run.logits(TOKENS, [1] * len(TOKENS))
        before = counts(run)
        run.logits(TOKENS, [1] * len(TOKENS))
        again = counts(run).since(before)
        assert again.expert_hits > 0
        assert (again.expert_misses, again.wanted, again.reads) == (0, 0, 0)


@pytest.mark.parametrize("slots", [2, 20])
@pytest.mark.parametrize("kind", ["fail_at", "cut_at", "die_at"])
def test_a_read_that_fails(slots: int, kind: str, make_model: Make) -> None:
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        want = logits(file, None, TOKENS)
        for at in (1, 5, 40):
            run = forward(file, settings(experts(file), slots=slots, request=1 << 14))
            with faults(delay_us=100, seed=at, **{kind: at}), pytest.raises(WeightReadError):
                run.logits(TOKENS)
            # The disk came round, and a thread less does as well.
            assert run.logits(TOKENS).tobytes() == want.tobytes()


def test_a_read_that_fails_of_an_expert_that_nobody_needed_yet(make_model: Make) -> None:
    """Read before its layer's turn in vain: it is read again once it is needed."""
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        others = [int(t) for t in np.random.default_rng(8).integers(20, 250, 40)]
        want = logits(file, None, others)
        for at in range(39, 61, 2):
            run = forward(file, settings(experts(file), slots=ALL, request=1 << 20))
            with faults(fail_at=at), suppress(WeightReadError):
                run.logits(TOKENS[:14])
            assert run.logits(others, [1] * len(others)).tobytes() == want.tobytes()


@pytest.mark.parametrize("at", [1, 3, 7, 20, 50])
def test_a_failure_beside_tiles(at: int, make_model: Make) -> None:
    """A tile that was read ahead may be the one that fails: it is read again."""
    with open_model(make_model("tiny-qwen3moe", "Q4_K_M")) as file:
        want = logits(file, None, TOKENS)
        run = forward(file, settings(units(file), ring=1 << 19, slots=3, request=1 << 14))
        run.logits(FEW)
        with faults(delay_us=100, seed=at, fail_at=at), suppress(WeightReadError):
            assert run.logits(TOKENS).tobytes() == want.tobytes()
        assert run.logits(TOKENS).tobytes() == want.tobytes()


def test_a_file_that_is_replaced(make_model: Make, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(make_model("tiny-qwen3moe", "Q4_K_M").read_bytes())
    with open_model(path) as file:
        run = forward(file, settings(experts(file), slots=6))
        run.logits(FEW)
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes()[::-1])
        other.replace(path)
        for _ in range(2):
            with pytest.raises(WeightReadError, match="was changed or replaced"):
                run.logits(TOKENS)
