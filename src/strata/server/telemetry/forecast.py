"""What the machine should reach with a model, by what was measured of it; for the live picture."""

from __future__ import annotations

from collections import Counter

from strata.backends.profile import SweepSize
from strata.backends.weights import WeightSource
from strata.llm import LLM
from strata.machine.machine import Machine
from strata.machine.probe import known_machine
from strata.machine.rates import Rates, best_read
from strata.plan.cost_model import CostModel, Streaming
from strata.plan.outline import outline
from strata.program import StepSize
from strata.records import dataclass

_DEPTH_STEP = 64
"""Positions by which the depth is rounded, because the cost model remembers what it was asked."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes a second from memory and disk, and operations a second of products with most of the
    weights, with the threads in use."""

    memory_bytes_per_s: float
    disk_bytes_per_s: float
    ops_per_s: float


class Forecast:
    """Speeds and ceilings of a loaded model."""

    def __init__(self, costs: CostModel, streaming: Streaming, format: str) -> None:
        self._costs = costs
        self._streaming = streaming
        rates = costs.rates
        self.ceilings = Ceilings(
            max(r.bytes_s for r in rates.machine.memory_read) * rates.memory_share,
            streaming.bytes_s,
            rates.kernel(format).prefill_ops_s * rates.share,
        )

    def alone_tok_s(self) -> float:
        """Tokens a second of one answer alone, at its beginning."""
        return 1 / self._costs.sweep_s(SweepSize(1, 1, 0, 1), self._streaming)

    def output_tok_s(self, last: StepSize) -> float | None:
        """Tokens a second of sweeps like ``last``; None if that did not give one for each token."""
        if last.tokens != last.logit_rows:
            return None
        past = last.context // _DEPTH_STEP * _DEPTH_STEP
        size = SweepSize(last.tokens, 1, past, last.logit_rows)
        return last.tokens / self._costs.sweep_s(size, self._streaming)


def forecast(llm: LLM) -> Forecast | None:
    """None where the machine was never measured (`strata probe` does it), or has no kernels."""
    file, threads = llm.runtime.file, llm.threads
    backend = llm.runtime.backend
    if threads is None or not backend.plans:
        return None
    machine = llm.runtime.machine or known_machine(file.paths[0])
    if machine is None or not machine.memory_read or not machine.kernels:
        return None
    nbytes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        nbytes[tensor.type.name] += tensor.nbytes
    plan = llm.plan
    profile = backend.profile(llm.model, WeightSource(file), llm.runtime.settings.activations)
    costs = CostModel(
        outline(file.path.name, llm.model, file, profile),
        Rates(machine, threads),
        "f16" if plan is None else plan.kv_type,
    )
    names = [unit.name for segment in llm.model.segments for unit in segment.units]
    streaming = costs.streaming(
        names if plan is None else plan.resident,
        _disk_rate(llm, machine),
        0 if plan is None else plan.ring_bytes,
        0 if plan is None else plan.expert_slots,
    )
    return Forecast(costs, streaming, nbytes.most_common(1)[0][0])


def _disk_rate(llm: LLM, machine: Machine) -> float:
    plan = llm.plan
    if plan is None or not plan.streamed:
        return best_read(machine, 1 << 62).bytes_s
    return max(d.bytes_s for d in machine.disk if d.mode == plan.read_mode)
