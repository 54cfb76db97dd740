"""What a backend says of a model beforehand is what it takes in fact."""

from __future__ import annotations

from pathlib import Path

import pytest

import make_tiny_models
from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.profile import rope_table_bytes
from strata.backends.kv_types import KV_BLOCK
from strata.backends.null import NullBackend
from strata.backends.reference import ReferenceBackend
from strata.backends.settings import (
    ACTIVATIONS,
    ActivationsName,
    BackendSettings,
    Reading,
)
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import ModelFile, open_model
from strata.memory import Ledger
from strata.models import build_model
from support.forward import Forward

THREADS, READERS, ROWS = 3, 2, 5

# Tokens, sequences, positions and activations.
SIZES: tuple[tuple[int, int, int, ActivationsName], ...] = (
    (1, 1, 40, "int8"),
    (16, 2, 700, "int16"),
    (300, 40, 5000, "int8"),
)


def taken(file: ModelFile, context: int, settings: BackendSettings) -> dict[str, int]:
    """Bytes by owner once the model is loaded and ready to run."""
    ledger = Ledger()
    run = Forward(file, context, CpuBackend(THREADS, settings=settings, books=ledger))
    run.backend.prepare()
    return dict(ledger.owned)


@pytest.mark.parametrize("name", make_tiny_models.names())
def test_every_family(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_directory(tmp_path, golden)) as file:
        context = golden.context or 64
        model = build_model(file, context)
        profiles = {a: CpuBackend.profile(model, WeightSource(file), a) for a in ACTIVATIONS}
        said = profiles["int8"]
        matrices = {m.source: m.packed_bytes for s in said.segments for m in s.matrices}
        names = frozenset(unit.name for unit in said.units)
        least = max(s.least_tile for s in said.segments)
        for tokens, parallel, positions, activations in SIZES:
            for streamed in (frozenset[str](), names):
                settings = BackendSettings(
                    max_tokens=tokens,
                    max_logit_rows=ROWS,
                    parallel=parallel,
                    positions=positions,
                    streamed=streamed,
                    ring_bytes=4 * least,
                    tile_bytes=least,
                    activations=activations,
                    reading=Reading(READERS),
                )
                owned = taken(file, context, settings)
                kept = 0 if streamed else sum(matrices.values())
                assert owned["weights"] == kept + said.vector_bytes
                assert owned["logits"] == 4 * ROWS * model.vocab_size
                tables = owned.get("rope tables", 0)
                beside = said.attention_bytes(positions, parallel, THREADS, tokens)
                assert tables == sum(rope_table_bytes(f, tokens) for f in said.rope_frequencies)
                scratch = THREADS * said.scratch_bytes(streams=bool(streamed))
                arena = profiles[activations].arena_bytes(tokens, ROWS)
                assert owned["activations"] == arena + scratch + beside - tables
                assert owned.get("ring", 0) == (4 * least if streamed else 0)


@pytest.mark.parametrize("name", make_tiny_models.names())
def test_kv(name: str, tmp_path: Path) -> None:
    golden = make_tiny_models.golden(name)
    with open_model(make_tiny_models.write_directory(tmp_path, golden)) as file:
        model = build_model(file, golden.context)
        said = CpuBackend.profile(model, WeightSource(file))
    for kv_type in CpuBackend.kv_types:
        ledger = Ledger()
        blocks = tuple(range(3, 3 + len(model.groups)))
        kv = CpuBackend(1, books=ledger).state_cache(model.state, blocks, kv_type)
        assert said.kv_bytes(blocks, kv_type.name) == ledger.owned["kv"] == kv.nbytes


def test_backends_that_keep_to_no_plan_say_so(smollm2_path: Path) -> None:
    with open_model(smollm2_path) as file:
        model = build_model(file, KV_BLOCK)
        for kind in (ReferenceBackend, NullBackend):
            assert not kind.plans
            with pytest.raises(UsageError, match="memory budget"):
                kind.profile(model, WeightSource(file))
