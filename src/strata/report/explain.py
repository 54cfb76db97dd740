"""What happened against the plan: bytes by tier, bandwidth, stalls, overlap, peak, one verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from strata.engine.drafting import DraftTotals
from strata.engine.routes import known_hits
from strata.engine.runner import Runner
from strata.engine.runtime import Runtime
from strata.engine.sweeps import Sweeps, SweepTotal
from strata.memory import cgroup_peak, peak_bytes
from strata.plan.routes import curve_for
from strata.records import dataclass
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
    Reading ``expert_ahead`` of them had begun before they were chosen, and was in vain for
    ``expert_wasted_bytes``. For ``idle_s`` no thread read.
    """

    sweeps: int
    tokens: int
    seconds: float
    tokens_s: float
    predicted_tokens_s: float | None
    disk_bytes: int
    row_bytes: int
    row_hits: int
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
    expert_ahead: int
    expert_wasted_bytes: int
    idle_s: float


@dataclass(frozen=True)
class GuessesReport:
    """Tokens that were guessed ahead and how many of them were right; the seconds that this saved
    by what steps took with guesses and without, and by what factor that made decoding faster."""

    drafted: int
    kept: int
    acceptance: float
    saved_s: float
    gain: float


@dataclass(frozen=True)
class Explanation:
    """``host_bytes`` of weights stay in memory, ``sweep_bytes`` come from the disk in each sweep.
    The slots for experts began with ``experts_kept`` that were used most last time.

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
    experts_kept: int
    disk_bandwidth: float | None
    load_bytes: int
    load_bytes_s: float | None
    prefill: SweepsReport | None
    decode: SweepsReport | None
    guesses: GuessesReport | None
    verdict: str


def explain(runtime: Runtime, runner: Runner, drafts: DraftTotals | None = None) -> Explanation:
    """What the sweeps of ``runner`` did so far, with these tokens guessed ahead."""
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
        experts_kept=stats.expert_kept,
        disk_bandwidth=bandwidth,
        load_bytes=stats.loaded,
        load_bytes_s=_rate(stats.loaded, stats.loading_s),
        prefill=prefill,
        decode=decode,
        guesses=_guesses(drafts, runner.sweeps.decode),
        verdict=_verdict(runner.sweeps, host_bytes, _more_slots(runtime, runner)),
    )


def _guesses(drafts: DraftTotals | None, decode: SweepTotal) -> GuessesReport | None:
    if drafts is None or not drafts.drafted:
        return None
    return GuessesReport(
        drafts.drafted,
        drafts.kept,
        drafts.kept / drafts.drafted,
        drafts.saved_s,
        max(0.0, decode.seconds + drafts.saved_s) / decode.seconds if decode.seconds else 1.0,
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
        row_hits=s.row_hits,
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
        expert_ahead=s.ahead,
        expert_wasted_bytes=s.wasted_bytes,
        idle_s=s.full_s,
    )


@dataclass(frozen=True)
class _MoreSlots:
    """What more memory for experts would do: a slot has ``each`` bytes, ``others`` have none."""

    each: int
    others: int
    slots: int
    rate: Callable[[int], float]

    def still_read(self, nbytes: int) -> float:
        """Of the bytes of experts that are read, the share that would be with so much more."""
        now = 1 - self.rate(self.slots)
        then = 1 - self.rate(self.slots + min(self.others, nbytes // self.each))
        return min(1.0, then / now) if now else 1.0


def _more_slots(runtime: Runtime, runner: Runner) -> _MoreSlots | None:
    plan = runtime.plan
    if plan is None or not plan.expert_slots:
        return None
    from strata.plan.expert_policies import hit_rate
    from strata.program.cost import distinct_experts

    routers = [op for s in runner.model.segments for op in s.program.ops if op.kind == "experts"]
    every = sum(unit.experts for s in runner.model.segments for unit in s.units)
    curves, rows = known_hits(runtime.file.paths), plan.parallel
    slots = plan.expert_slots - plan.expert_ahead
    each = every // len(routers)
    needed = distinct_experts(each, routers[0].attrs["top_k"], rows)

    def rate(slots: int) -> float:
        curve = curve_for(curves, rows, slots)
        if curve is None or slots >= every:
            return hit_rate(every, len(routers), slots, needed)
        return curve.rate(slots)

    return _MoreSlots(max(1, runtime.slot_bytes), every - slots, slots, rate)


def _verdict(sweeps: Sweeps, host_bytes: int, slots: _MoreSlots | None) -> str:
    """One line: what bounds the speed, and what would change it."""
    total = sweeps.decode if sweeps.decode.sweeps else sweeps.prefill
    if total.sweeps == 0:
        return "nothing was run"
    seconds = total.seconds / total.sweeps
    read = total.streamed.used / total.sweeps
    if read == 0:
        rate = host_bytes / seconds / 1e9
        what = "memory-bound" if total is sweeps.decode else "compute-bound"
        return f"{what}: all weights are resident and were read at {rate:.1f} GB/s"
    compute = total.compute_s / total.sweeps
    disk_s = total.streamed.reading_s / total.sweeps
    at = f"{format_size(int(read))} a sweep at {read / seconds / 1e9:.2f} GB/s"
    if compute >= disk_s:
        return f"compute-bound: the disk gave {at} and waited; more memory would change little"
    # First what every sweep reads would stay, then more experts.
    routed = total.streamed.expert_read / total.sweeps
    more = min(_MORE, int(read - routed))
    left = read - more
    if slots is not None and (rest := min(_MORE - more, slots.others * slots.each)) > 0:
        more += rest
        left -= routed * (1 - slots.still_read(rest))
    faster = seconds / max(compute, disk_s * left / read, 1e-9)
    return (
        f"disk-bound: {at}, the kernels waited {100 * total.streamed.waited_s / total.seconds:.0f} "
        f"% of the time; {format_size(more)} more memory would make it {faster:.2f}x"
    )


def _rate(nbytes: int, seconds: float) -> float | None:
    return nbytes / seconds if seconds > 0 else None
