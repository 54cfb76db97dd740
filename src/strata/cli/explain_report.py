"""What happened against the plan, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from strata.cli.console import counted
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.report.explain import Explanation, GuessesReport, SweepsReport


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Plain values."""
    return {**asdict(explanation), "owned": dict(explanation.owned)}


def lines(e: Explanation) -> Iterator[str]:
    """What a person reads; the verdict is the last line."""
    yield f"weights: {format_size(e.host_bytes)} in memory, {format_size(e.sweep_bytes)} from disk"
    if e.load_bytes:
        speed = "" if e.load_bytes_s is None else f" at {e.load_bytes_s / 1e9:.2f} GB/s"
        yield f"loading: {format_size(e.load_bytes)} read{speed}"
    if e.experts_kept:
        yield f"experts: began with {e.experts_kept} that were used most last time"
    for name, sweeps in (("prefill", e.prefill), ("decode", e.decode)):
        if sweeps is not None:
            yield f"{name}: {_speed(sweeps)}"
            if sweeps.disk_bytes:
                yield f"  {_disk(sweeps)}"
            if sweeps.expert_bytes:
                yield f"  {_experts(sweeps)}"
    if e.guesses is not None:
        yield f"guesses: {_guesses(e.guesses)}"
    yield f"memory: {_memory(e)}"
    yield e.verdict


def _speed(s: SweepsReport) -> str:
    predicted = s.predicted_tokens_s
    against = "" if predicted is None else f" ({predicted:.3g} predicted)"
    work = f"{counted(s.tokens, 'token')} in {counted(s.sweeps, 'sweep')}"
    each = "" if s.tokens <= s.sweeps else f" ({s.tokens / s.sweeps:.3g} a sweep)"
    return f"{work}{each} and {s.seconds:.2f} s, {s.tokens_s:.3g} tok/s{against}"


def _guesses(g: GuessesReport) -> str:
    return (
        f"{g.kept} of {counted(g.drafted, 'token')} guessed ahead were right "
        f"({100 * g.acceptance:.0f} %), which made decoding {g.gain:.2f} times as fast"
    )


def _disk(s: SweepsReport) -> str:
    share = "" if s.disk_share is None else f", {100 * s.disk_share:.0f} % of what it gives"
    return (
        f"{format_size(s.disk_bytes)} from disk at {s.disk_bytes_s / 1e9:.2f} GB/s{share}; "
        f"waiting: kernels {100 * s.waited_share:.0f} %, readers {100 * s.full_share:.0f} %; "
        f"overlap {100 * s.overlap:.0f} %"
    )


def _experts(s: SweepsReport) -> str:
    needed = s.expert_hits + s.expert_misses
    return (
        f"experts: {s.expert_hits} of {needed} needed were in memory "
        f"({100 * s.expert_hits / needed:.0f} %), {s.expert_misses} read; "
        f"{format_size(s.expert_read_bytes)} of {format_size(s.expert_bytes)} came from disk"
        f"{_ahead(s)}; no thread read for {s.idle_s:.2f} s"
    )


def _ahead(s: SweepsReport) -> str:
    if not s.expert_ahead and not s.expert_wasted_bytes:
        return ""
    return (
        f", {s.expert_ahead} begun before they were chosen and "
        f"{format_size(s.expert_wasted_bytes)} read in vain"
    )


def _memory(e: Explanation) -> str:
    parts = [f"peak {format_size(e.peak_bytes)}"]
    if e.cgroup_peak_bytes is not None:
        parts.append(f"{format_size(e.cgroup_peak_bytes)} in the cgroup")
    if e.predicted_peak_bytes is not None:
        parts.append(f"{format_size(e.predicted_peak_bytes)} predicted")
    if e.budget is not None:
        parts.append(f"budget {format_size(e.budget)}")
    return ", ".join(parts)
