"""Runs a model by a Plan and prints what came out and what it took: a process of its own, because
the peak of a process is counted from its beginning.

Arguments: model, machine file, bytes (0 for all that there is, -1 for the smallest budget that
does, -3 for the one in which everything is resident, -2 for the middle), context, prompt tokens,
answer tokens.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from numpy.random import default_rng

from strata.backends.cpu.backend import CpuBackend
from strata.backends.cpu.host import available_isas
from strata.backends.weights import WeightSource
from strata.decode import SamplingParams
from strata.engine.runtime import base_memory
from strata.formats import open_model
from strata.llm import LLM
from strata.machine.probe import load_machine
from strata.memory import cgroup_peak, peak_bytes
from strata.models import build_model
from strata.plan import Limits, Machine, Plan, Workload
from strata.plan.outline import outline
from strata.plan.planner import Planner, plan


def _plan(path: Path, machine: Machine, limits: Limits, workload: Workload) -> Plan:
    """In a function of its own: what planning takes is given back before the model is run."""
    with open_model(path) as file:
        built = build_model(file, workload.context)
        sizes = outline(path.name, built, file, CpuBackend.profile(built, WeightSource(file)))
    assert limits.memory is not None
    if limits.memory < 0:
        planner = Planner(sizes, machine, limits, workload)
        floor, full = planner.floor(), planner.everything()
        named = {-1: floor, -2: (floor + full) // 2, -3: full}
        limits = replace(limits, memory=named[limits.memory])
    return plan(sizes, machine, limits, workload)


def main() -> None:
    path, machine_file = Path(sys.argv[1]), Path(sys.argv[2])
    memory, context, prompt, answer = map(int, sys.argv[3:7])
    machine = replace(load_machine(machine_file), isa=available_isas()[0], cores=2)
    made, base = None, base_memory(planned=True)
    if memory:
        limits = Limits(memory, 2, process_bytes=base)
        made = _plan(path, machine, limits, Workload(prompt, 1, context, answer))
        memory = made.budget
    with LLM(path, plan=made, memory=memory or None, threads=2, context=context) as llm:
        vocabulary = llm.engine.runner.model.vocab_size
        ids = default_rng(1).integers(20, min(vocabulary, 40_000), prompt).tolist()
        output = llm.generate(ids, SamplingParams(max_tokens=answer, logprobs=1, ignore_eos=True))
        llm.runtime.check_integrity()
        sweeps = llm.engine.runner.sweeps
        print(
            json.dumps(
                {
                    "tokens": output.token_ids,
                    "logprobs": [s.logprob.hex() for s in output.logprobs or ()],  # type: ignore[union-attr]
                    "peak": peak_bytes(),
                    "cgroup_peak": cgroup_peak(),
                    "cached": llm.runtime.backend.cached_bytes(),
                    "budget": memory,
                    "predicted": made.predicted.peak_bytes if made else None,
                    "reserved": made.predicted.memory.total if made else None,
                    "streamed": len(made.streamed) if made else 0,
                    "sweep_bytes": made.predicted.sweep_bytes if made else 0,
                    "used_bytes": sweeps.decode.streamed.used,
                    "sweeps": sweeps.decode.sweeps,
                    "prefill_sweeps": sweeps.prefill.sweeps,
                    "decode_tok_s": output.timings.decode_tok_s,
                    "ttft_s": output.timings.ttft_s,
                    "base": base,
                    "owned": dict(llm.ledger.owned),
                }
            )
        )


if __name__ == "__main__":
    main()
