"""Every family with experts, of GGUF files and of directories: with room for all of them, for some
or for one, alone or sixteen sequences together, from a disk that is slow, answers in another order
or fails, the logits are those of experts that all stay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import make_tiny_directories as directories
import make_tiny_hybrids as hybrids
import make_tiny_variants as variants
from strata.backends.base import NO_BLOCK, Activations, Span, Step
from strata.backends.cpu.backend import CpuBackend
from strata.backends.weights import WeightReadError, WeightSource
from strata.formats import open_model
from strata.models import FAMILIES, build_model
from strata.models.mixtures import HUGGING_FACE
from strata.models.variants import GGUF
from strata.program import Model
from support import latent_models, special_models
from support.forward import Forward
from support.streaming import faults, forward, settings, units

FFN = 32
"""Rows of an expert: whole panels, since others stay in memory."""

ALL = 1000
TOKENS = [(7 + 13 * i) % 48 for i in range(10)]
PARTS = [[(5 * i + j) % 48 for j in range(2)] for i in range(16)]

Write = Callable[[Path, str, pytest.MonkeyPatch], Path]


def write_variant(folder: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    del patch
    return variants.write(folder / "m.gguf", name, expert_feed_forward_length=FFN)


def write_hybrid(folder: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    patch.setattr(hybrids, "_EXPERT_FFN", FFN)
    keys: dict[str, object] = {"expert_feed_forward_length": FFN}
    if name == "minimax-01":
        keys |= {"feed_forward_length": FFN}
    if name == "nemotron_h_moe":
        keys |= {"feed_forward_length": [0, 0, FFN, FFN]}
    return hybrids.write(folder / "m.gguf", name, **keys)


def write_special(folder: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    del patch
    return special_models.write(folder / "m.gguf", name)


def write_latent(folder: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    del patch
    return latent_models.write(folder / "m.gguf", architecture=name)


def write_directory(folder: Path, name: str, patch: pytest.MonkeyPatch) -> Path:
    del patch
    return directories.write(folder / "m", name)


def has_experts(stated: dict[str, object]) -> bool:
    counts = ("expert_count", "num_experts", "num_local_experts", "n_routed_experts")
    return any(stated.get(key) for key in (*counts, "moe_num_experts", "ffn_config"))


WRITERS: dict[str, tuple[Write, list[str]]] = {
    "variant": (write_variant, [n for n in variants.names() if GGUF[n].mixture is not None]),
    "hybrid": (
        write_hybrid,
        [n for n in hybrids.names() if f"{n}.expert_count" in hybrids.metadata(n)],
    ),
    "special": (
        write_special,
        [
            n
            for n, (own, _) in special_models.SPECIAL.items()
            if has_experts({**special_models.KEYS, **own})
        ],
    ),
    "latent": (write_latent, ["deepseek2"]),
    "directory": (
        write_directory,
        [n for n, stated in directories.CONFIGS.items() if has_experts(stated)],
    ),
}
CASES = [(kind, name) for kind, (_, names) in WRITERS.items() for name in names]
USUAL = {("variant", "gpt-oss"), ("hybrid", "lfm2moe"), ("directory", "Glm4Moe")}


def routed(model: Model) -> list[str]:
    return [u.name for s in model.segments for u in s.units if u.reads == "routed"]


def together(run: Forward, parts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Logits of several sequences from one step."""
    groups, counts = run.model.groups, [len(part) for part in parts]
    state = run.backend.state_cache(run.model.state, (len(parts),) * len(groups))
    spans = tuple(
        Span(
            sum(counts[:i]),
            count,
            0,
            tuple(np.array([NO_BLOCK, i] if g.recurrent else [i], np.int32) for g in groups),
        )
        for i, count in enumerate(counts)
    )
    tokens = np.array([t for part in parts for t in part], np.int32)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in counts])
    step = Step(tokens, positions, spans, np.arange(len(tokens), dtype=np.int32))
    values: Activations = {}
    for segment in run.segments:
        values = run.backend.run(segment, step, state, values)
    (given,) = run.model.segments[-1].outputs
    return run.backend.export(values, (given,))[given]


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*c, marks=() if c in USUAL else pytest.mark.slow) for c in CASES],
)
def test_bits_are_those_of_experts_that_stay(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, _ = WRITERS[kind]
    with open_model(write(tmp_path, name, monkeypatch)) as file:
        resident = forward(file, None)
        some = routed(resident.model)
        causal = resident.model.causal
        want = resident.logits(TOKENS)
        assert np.isfinite(want).all()
        alone = np.concatenate([resident.logits(part) for part in PARTS]) if causal else None
        for slots, names in ((1, some), (3, units(file)), (7, some), (ALL, some)):
            how = settings(names, slots=slots, request=1 << 12, direct=slots == 7)
            run = forward(file, how, threads=1 + slots % 4)
            with faults(delay_us=100, seed=slots):
                assert run.logits(TOKENS).tobytes() == want.tobytes()
                if alone is not None:
                    assert run.logits(TOKENS, [4, 1, 5]).tobytes() == want.tobytes()
                    assert together(run, PARTS).tobytes() == alone.tobytes()
            stats = run.backend.stats()
            assert stats.expert_misses > 0
            if slots == 1:
                with faults(delay_us=100, seed=slots, fail_at=3), pytest.raises(WeightReadError):
                    run.logits(TOKENS)
                assert run.logits(TOKENS).tobytes() == want.tobytes()
            if slots == ALL and causal:
                assert stats.expert_hits > 0


def test_rows_that_hashes_choose_are_kept(tmp_path: Path) -> None:
    """Of n-grams, whichever threads ask for them, beside those of the embedding: each is read once
    where there is room, and the bits are the same."""
    with open_model(hybrids.write(tmp_path / "m.gguf", "qwen4exp")) as file:
        resident = forward(file, None)
        want = resident.logits(TOKENS)
        profile = CpuBackend.profile(resident.model, WeightSource(file))
        assert sum(unit.lookups for unit in profile.units) == 4 + 1
        for threads in (1, 3):
            how = replace(settings(units(file)), row_cache_bytes=1 << 17)
            run = forward(file, how, threads=threads)
            with faults(delay_us=100, seed=threads):
                assert run.logits(TOKENS).tobytes() == want.tobytes()
                reads, hits = run.backend.stats().row_reads, run.backend.stats().row_hits
                assert run.logits(TOKENS, [4, 1, 5]).tobytes() == want.tobytes()
            stats, lookups = run.backend.stats(), 4 + 1
            assert stats.row_reads == reads
            assert stats.row_hits == hits + len(TOKENS) * lookups
            assert reads + hits == len(TOKENS) * lookups


def test_no_family_is_left_out() -> None:
    """Each row of a table, and each module of its own that builds experts."""
    named = {f"{name}ForCausalLM" for name in WRITERS["directory"][1]}
    assert set(HUGGING_FACE) <= named
    known = named | {name.split()[0] for _, name in CASES}
    covered = {FAMILIES[name].split(".")[0] for name in known if name in FAMILIES}
    # Granite's own module builds what the row of granitemoe does, where a file says that it has
    # experts.
    for module in {build.split(".")[0] for build in FAMILIES.values()} - {"granite"}:
        if "expert" in inspect.getsource(import_module(f"strata.models.{module}")):
            assert module in covered, module


def test_what_is_written_has_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (kind, name) in enumerate(CASES):
        if number % 9 == 0:
            folder = tmp_path / str(number)
            folder.mkdir()
            with open_model(WRITERS[kind][0](folder, name, monkeypatch)) as file:
                assert routed(build_model(file)), name
