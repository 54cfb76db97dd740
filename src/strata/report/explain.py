"""What happened against the plan: bytes by tier, bandwidth, stalls, overlap, peak, one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from strata.engine.runner import Runner
from strata.engine.runtime import Runtime
from strata.engine.sweeps import SweepTotal
from strata.memory import cgroup_peak, peak_bytes
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.plan import Plan

_MORE = 10**9
"""Bytes of memory that the verdict offers in addition."""


@dataclass(frozen=True)
class SweepsReport:
    """Sweeps of one kind. Rates are bytes and tokens a second, times seconds, shares 0 to 1.

    ``disk_bytes_s`` is over the whole time and ``reading_bytes_s`` over that in which some read was
    under way; ``disk_share`` is the former of the measured bandwidth. ``waited_share`` of the time
    the kernels waited for weights, ``full_share`` all readers waited for the kernels. ``overlap``
    is the longer of fetching and computing (packing included) against the time of the sweeps:
    1 is perfect. Of experts that are not resident ``expert_hits`` were in memory when they were
    needed and ``expert_misses`` were read: ``expert_read_bytes`` of ``expert_bytes`` needed.
    """

    sweeps: int
    tokens: int
    seconds: float
    tokens_s: float
    predicted_tokens_s: float | None
    disk_bytes: int
    row_bytes: int
    disk_bytes_s: float
    reading_bytes_s: float
    disk_share: float | None
    waited_share: float
    full_share: float
    overlap: float
    expert_hits: int
    expert_misses: int
    expert_bytes: int
    expert_read_bytes: int


@dataclass(frozen=True)
class Explanation:
    """``host_bytes`` of weights stay in memory, ``sweep_bytes`` come from the disk in each sweep.

    ``peak_bytes`` is the process's largest resident size, ``cgroup_peak_bytes`` the most that its
    memory cgroup held (page cache included, if there is such a group), ``cached_bytes`` the page
    cache that the model's files take now.
    """

    budget: int | None
    predicted_peak_bytes: int | None
    peak_bytes: int
    cgroup_peak_bytes: int | None
    cached_bytes: int
    owned: tuple[tuple[str, int], ...]
    host_bytes: int
    sweep_bytes: int
    disk_bandwidth: float | None
    load_bytes: int
    load_bytes_s: float | None
    prefill: SweepsReport | None
    decode: SweepsReport | None
    verdict: str


def explain(runtime: Runtime, runner: Runner) -> Explanation:
    """What the sweeps of ``runner`` did so far."""
    backend, plan, machine = runtime.backend, runtime.plan, runtime.machine
    bandwidth = None
    if plan is not None and machine is not None:
        same = [d.bytes_s for d in machine.disk if d.mode == plan.read_mode]
        bandwidth = max(same, default=None)
    decode = _report(runner.sweeps.decode, bandwidth, plan)
    prefill = _report(runner.sweeps.prefill, bandwidth, None)
    stats = backend.stats()
    sweep_bytes = plan.predicted.sweep_bytes if plan is not None else 0
    host_bytes = runtime.weights_bytes
    return Explanation(
        budget=None if plan is None else plan.budget,
        predicted_peak_bytes=None if plan is None else plan.predicted.peak_bytes,
        peak_bytes=peak_bytes(),
        cgroup_peak_bytes=cgroup_peak(),
        cached_bytes=backend.cached_bytes(),
        owned=tuple(runtime.ledger.owned.items()),
        host_bytes=host_bytes,
        sweep_bytes=sweep_bytes,
        disk_bandwidth=bandwidth,
        load_bytes=stats.loaded,
        load_bytes_s=_rate(stats.loaded, stats.loading_s),
        prefill=prefill,
        decode=decode,
        verdict=_verdict(runner.sweeps.decode, runner.sweeps.prefill, host_bytes),
    )


def _report(t: SweepTotal, bandwidth: float | None, plan: Plan | None) -> SweepsReport | None:
    if t.sweeps == 0:
        return None
    s = t.streamed
    rate = s.from_disk / t.seconds
    return SweepsReport(
        sweeps=t.sweeps,
        tokens=t.tokens,
        seconds=t.seconds,
        tokens_s=t.tokens / t.seconds,
        predicted_tokens_s=None if plan is None else plan.predicted.decode_tok_s,
        disk_bytes=s.used,
        row_bytes=s.rows,
        disk_bytes_s=rate,
        reading_bytes_s=_rate(s.from_disk, s.reading_s) or 0.0,
        disk_share=rate / bandwidth if bandwidth and s.used else None,
        waited_share=min(1.0, s.waited_s / t.seconds),
        full_share=min(1.0, s.full_s / t.seconds),
        overlap=min(1.0, max(s.fetching_s, t.compute_s) / t.seconds),
        expert_hits=s.expert_hits,
        expert_misses=s.expert_misses,
        expert_bytes=s.expert_bytes,
        expert_read_bytes=s.expert_read,
    )


def _verdict(decode: SweepTotal, prefill: SweepTotal, host_bytes: int) -> str:
    """One line: what bounds the speed, and what would change it."""
    total = decode if decode.sweeps else prefill
    if total.sweeps == 0:
        return "nothing was run"
    seconds = total.seconds / total.sweeps
    read = total.streamed.used / total.sweeps
    if read == 0:
        rate = host_bytes / seconds / 1e9
        what = "memory-bound" if total is decode else "compute-bound"
        return f"{what}: all weights are resident and were read at {rate:.1f} GB/s"
    compute = total.compute_s / total.sweeps
    disk_s = total.streamed.reading_s / total.sweeps
    at = f"{format_size(int(read))} a sweep at {read / seconds / 1e9:.2f} GB/s"
    if compute >= disk_s:
        return f"compute-bound: the disk gave {at} and waited; more memory would change little"
    more = min(_MORE, int(read))
    faster = seconds / max(compute, disk_s * (1 - more / read), 1e-9)
    return (
        f"disk-bound: {at}, the kernels waited {100 * total.streamed.waited_s / total.seconds:.0f} "
        f"% of the time; {format_size(more)} more memory would make it {faster:.2f}x"
    )


def _rate(nbytes: int, seconds: float) -> float | None:
    return nbytes / seconds if seconds > 0 else None
