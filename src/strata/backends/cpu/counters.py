"""What native code has counted, in the words of every backend."""

from __future__ import annotations

import strata._native as _native
from strata.backends.base import BackendStats
from strata.backends.cpu.reading import WeightReader


def of_loading(reader: WeightReader) -> BackendStats:
    """What was read to load, and rows of tables since."""
    loading, rows = reader.counters, reader.row_counters
    return BackendStats(
        rows=rows.wanted,
        row_reads=rows.reads,
        rows_from_disk=rows.from_disk,
        loaded=loading.wanted,
        loading_s=loading.reading_s,
    )


def of_streaming(readers: _native.Readers, stream: _native.Stream | None) -> BackendStats:
    """What was read while the model ran, and how long it was waited for."""
    read = readers.counters
    return BackendStats(
        used=0 if stream is None else stream.used_bytes,
        wanted=read.wanted,
        from_disk=read.from_disk,
        reads=read.reads,
        reading_s=read.reading_s,
        fetching_s=readers.fetching_s,
        waited_s=readers.waited_s,
        full_s=readers.idle_s,
    )


def of_kept_rows(rows: _native.RowCache) -> BackendStats:
    """What was found of rows that were fetched before."""
    return BackendStats(row_hits=rows.hits)


def of_experts(experts: _native.ExpertCache) -> BackendStats:
    """What was found in slots, and what was read into them."""
    return BackendStats(
        used=experts.read_bytes,
        expert_hits=experts.hits,
        expert_misses=experts.misses,
        expert_bytes=experts.needed_bytes,
        expert_read=experts.read_bytes,
        expert_kept=experts.begun_with,
        foreseen=experts.foreseen,
        foreseen_right=experts.right,
        ahead=experts.begun,
        ahead_bytes=experts.ahead_bytes,
        wasted_bytes=experts.wasted_bytes,
    )
