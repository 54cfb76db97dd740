"""Models that are streamed, entirely or in part, by settings made by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.cpu.backend import CpuBackend
from strata.backends.settings import BackendSettings, Reading
from strata.formats import ModelFile
from strata.models import build_model
from strata.plan.expert_policies import SURE_OF
from support.forward import Forward

SMALL_REQUEST = 4096


def units(file: ModelFile, context: int | None = None) -> list[str]:
    """Names of a model's WeightUnits."""
    return [u.name for segment in build_model(file, context).segments for u in segment.units]


def settings(
    streamed: Sequence[str],
    *,
    ring: int = 1 << 22,
    tile: int = 1 << 16,
    threads: int = 3,
    request: int = SMALL_REQUEST,
    direct: bool = False,
    slots: int = 5,
    ahead: int = 0,
) -> BackendSettings:
    """Small tiles and requests, so that small models have many; as many slots as there may be are
    for what the next layer is sure to need."""
    reading = Reading(threads, request, direct, drop_behind=True)
    return BackendSettings(
        streamed=frozenset(streamed),
        ring_bytes=ring,
        tile_bytes=tile,
        expert_slots=slots,
        expert_ahead=ahead,
        expert_sure=(slots - ahead) // SURE_OF,
        reading=reading,
    )


def forward(
    file: ModelFile, how: BackendSettings | None, context: int | None = None, threads: int = 2
) -> Forward:
    """The model, loaded; ``how`` None keeps everything in memory."""
    return Forward(file, context, CpuBackend(threads=threads, settings=how))


def logits(
    file: ModelFile,
    how: BackendSettings | None,
    tokens: Sequence[int],
    context: int | None = None,
    chunks: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Logits of all tokens, loaded for this one run."""
    return forward(file, how, context).logits(tokens, chunks)


def least_ring(file: ModelFile, tile: int, context: int | None = None) -> int:
    """The smallest ring that holds every tile when everything is streamed."""
    how = settings(units(file, context), tile=tile)
    loaded = Forward(file, context, CpuBackend(threads=1, settings=how))
    tracks = [s.track for s in loaded.segments if s.track]  # type: ignore[attr-defined]
    most, _ = _native.stream_memory(tracks)
    return most


@contextmanager
def faults(**kind: int) -> Iterator[Callable[[], None]]:
    """Reads that are slow, fail, end early or kill their thread, for as long as this lasts."""
    _native.set_read_faults(**kind)
    try:
        yield lambda: _native.set_read_faults(**kind)
    finally:
        _native.set_read_faults()
