"""From load options to a Plan to a backend: what was decided is what is executed."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import strata._native as _native
from strata.backends.base import Backend
from strata.backends.cpu.backend import CpuBackend, CpuSettings
from strata.backends.cpu.reading import Reading
from strata.backends.kv_types import choose_kv_type
from strata.backends.weights import WeightSource
from strata.engine.engine import TOKEN_BUDGET
from strata.engine.runner import LOGIT_ROWS, LoadProgress, Runner
from strata.engine.sweeps import NOTHING_STREAMED, Streamed
from strata.errors import UsageError
from strata.formats import ModelFile
from strata.memory import Ledger, process_memory
from strata.memory.limits import memory_available
from strata.program import Model
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.plan import Machine, Plan, Workload
    from strata.plan.plan import KVTypeName

_SURELY_FITS = 0.4
"""Of the free memory: a model whose weights take less is run without a Plan being made."""

_ALIKE = 12 << 20
"""By as much a process may differ from the one that the cost model knows without being another."""

_SAMPLING = 20
"""Bytes for each token of the vocabulary while one is chosen: float64 copies, an order, sums."""

_PROBE = """
import json, pathlib, sys
from strata.plan import to_json
from strata.machine.probe import probe
print(json.dumps(to_json(probe(pathlib.Path(sys.argv[1]))[0])))
"""


@dataclass(frozen=True)
class LoadOptions:
    """What is asked for. ``memory`` is a budget, None for what the machine leaves; ``workload`` is
    what the Plan is made for, but for its context and concurrency, which are ``context`` and
    ``parallel``; ``planned`` asks for a Plan in any case. ``kv_type`` None leaves it to the
    backend; ``kv_bytes`` bounds the KV of all requests. ``serving`` says that they come over HTTP.
    ``process_bytes`` is ``base_memory``, where it was asked for in time.
    """

    memory: int | None = None
    threads: int | None = None
    context: int | None = None
    parallel: int = 1
    workload: Workload | None = None
    planned: bool = False
    kv_type: str | None = None
    kv_bytes: int | None = None
    serving: bool = False
    process_bytes: int | None = None


@dataclass(frozen=True)
class Runtime:
    """A backend made as a Plan has it, and the books of its memory.

    ``limited`` says that a budget was given: then it is held, and the page cache is part of it.
    """

    backend: Backend
    ledger: Ledger
    plan: Plan | None
    machine: Machine | None
    file: ModelFile | None
    threads: int | None
    isa: str
    context: int
    parallel: int
    token_budget: int
    logit_rows: int
    limited: bool = False

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights held, those that two Segments share counted once."""
        return self.ledger.owned.get("weights", 0)

    @contextmanager
    def settling(self, owner: str) -> Iterator[None]:
        """Enters for ``owner`` what the process has come to take meanwhile."""
        before = process_memory().total
        yield
        _native.give_back_memory()
        self.ledger.take(owner, max(0, process_memory().total - before))

    def runner(self, model: Model, weights: WeightSource, progress: LoadProgress | None) -> Runner:
        """A Runner whose weights are loaded."""
        resident, entered = process_memory().total, self.ledger.total
        runner = Runner(
            self.backend,
            model,
            weights,
            progress,
            logit_rows=self.logit_rows,
            streamed=self.streamed,
        )
        if not isinstance(self.backend, CpuBackend):
            # Other backends keep no books.
            self.ledger.take("weights", sum(loaded.nbytes for loaded in runner.loaded))
        self.ledger.take("sampling", _SAMPLING * model.vocab_size)
        entered += _SAMPLING * model.vocab_size
        # What came beside the weights: nodes, Ops and their names.
        grown = process_memory().total - resident
        self.ledger.take("runtime", max(0, grown - (self.ledger.total - entered)))
        return runner

    def ready(self) -> None:
        """Everything is loaded: begin to read ahead, and give back what loading left behind."""
        if isinstance(self.backend, CpuBackend):
            self.backend.prepare()
        if self.limited and self.file is not None:
            self.file.forget_cached()
        _native.give_back_memory()

    def close(self) -> None:
        """Free the weights and what running takes; nothing can be run afterwards."""
        if isinstance(self.backend, CpuBackend):
            self.backend.close()
        _native.give_back_memory()

    def streamed(self) -> Streamed:
        """What streaming has done so far."""
        stats = self.backend.stream_stats() if isinstance(self.backend, CpuBackend) else None
        if stats is None:
            return NOTHING_STREAMED
        return Streamed(
            stats.used_bytes,
            stats.tiles.from_disk,
            stats.rows.wanted,
            stats.tiles.reading_s,
            stats.waited_s,
            stats.full_s,
            stats.fetching_s,
        )

    def check_integrity(self) -> None:
        """LedgerError if the process takes more memory than its owners entered."""
        self.ledger.check_integrity(process_memory().total)


def make_runtime(
    file: ModelFile, model: Model, options: LoadOptions, plan: Plan | None = None
) -> Runtime:
    """The native backend by a Plan: the one given, else one made for the options.

    Nothing is loaded yet. Raises BudgetTooSmall.
    """
    machine = None
    if plan is None and _needs_plan(file, options):
        machine = this_machine(file)
        plan = _make_plan(file, model, machine, options)
    if plan is None:
        ledger = _ledger(None, 0)
        settings = CpuSettings(positions=model.context_length, parallel=options.parallel)
        token_budget, context, parallel = TOKEN_BUDGET, model.context_length, options.parallel
        backend = CpuBackend(options.threads, settings=settings, books=ledger)
    else:
        _check_plan(plan, model)
        limited = options.memory is not None
        ledger = _ledger(plan.budget if limited else None, plan.predicted.memory.margin)
        token_budget, context, parallel = plan.max_tokens, plan.context, plan.parallel
        backend = CpuBackend(plan.threads, plan.isa, _settings(plan, limited), ledger)
    return Runtime(
        backend,
        ledger,
        plan,
        machine,
        file,
        backend.threads,
        backend.isa,
        context,
        parallel,
        token_budget,
        backend.settings.max_out_rows,
        options.memory is not None,
    )


def reference_runtime(model: Model, options: LoadOptions) -> Runtime:
    """The reference backend, which knows no Plans."""
    from strata.backends.reference import ReferenceBackend

    context, ledger = model.context_length, _ledger(None, 0)
    backend = ReferenceBackend()
    return Runtime(
        backend, ledger, None, None, None, None, "numpy", context, options.parallel, TOKEN_BUDGET,
        LOGIT_ROWS,
    )  # fmt: skip


def base_memory(*, planned: bool) -> int:
    """Resident bytes of this process before a model is opened, with the libraries that a run comes
    to need, and without what importing left behind: that is used again. Where nothing is planned
    nobody looks so closely, and what may not be needed is not imported."""
    import tokenizers  # noqa: F401

    if planned:
        import strata.machine.probe
        import strata.text.sandbox  # noqa: F401

        gc.collect()
    _native.give_back_memory()
    return process_memory().total


def this_machine(file: ModelFile) -> Machine:
    """This machine and the disk under a model. What is not known yet is measured by a process of
    its own, so that measuring takes nothing of our budget. Raises DiskProbeError."""
    from strata.machine.probe import known_machine, probe
    from strata.plan import Machine, from_json

    path = file.paths[0]
    known = known_machine(path)
    if known is not None:
        return known
    command = [sys.executable, "-c", _PROBE, str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    # One that failed says here why.
    return from_json(Machine, json.loads(done.stdout)) if done.returncode == 0 else probe(path)[0]


def _needs_plan(file: ModelFile, options: LoadOptions) -> bool:
    if options.memory is not None or options.planned:
        return True
    return file.nbytes > _SURELY_FITS * memory_available()


def _make_plan(file: ModelFile, model: Model, machine: Machine, options: LoadOptions) -> Plan:
    from strata.machine import constants
    from strata.plan import Limits, Workload, outline, plan
    from strata.plan.memory_model import server_bytes
    from strata.plan.planner import BudgetTooSmall

    workload = options.workload
    if workload is None:
        half = (options.context or model.context_length) // 2
        usual = Workload()
        workload = replace(
            usual,
            prompt_tokens=max(1, min(usual.prompt_tokens, half)),
            answer_tokens=min(usual.answer_tokens, half),
        )
    workload = replace(
        workload, concurrency=options.parallel, context=options.context, serving=options.serving
    )
    kv_type = choose_kv_type(options.kv_type, CpuBackend.kv_types).name
    sizes = outline(file.path.name, model, file)
    process = options.process_bytes or base_memory(planned=True)
    if options.serving:
        # Of a server's libraries some are here already.
        process = max(constants.PROCESS, process - server_bytes(sizes, workload))
    limits = Limits(
        options.memory, options.threads, cast("KVTypeName", kv_type), options.kv_bytes, process
    )
    try:
        return plan(sizes, machine, limits, workload)
    except BudgetTooSmall as error:
        others = process - constants.PROCESS
        if options.memory is None or others < _ALIKE:
            raise
        raise BudgetTooSmall(
            f"of {format_size(options.memory)} this process takes {format_size(others)} for other "
            f"things: {error}",
            error.smallest,
        ) from None


def _check_plan(plan: Plan, model: Model) -> None:
    names = [unit.name for segment in model.segments for unit in segment.units]
    if sorted((*plan.resident, *plan.streamed)) != sorted(names):
        raise UsageError(f"this plan was made for another model: {plan.model}")


def _settings(plan: Plan, limited: bool) -> CpuSettings:
    return CpuSettings(
        max_tokens=plan.max_tokens,
        max_out_rows=plan.logit_rows,
        parallel=plan.parallel,
        positions=plan.context,
        streamed=frozenset(plan.streamed),
        ring_bytes=plan.ring_bytes,
        tile_bytes=plan.tile_bytes,
        reading=Reading(
            threads=plan.io_threads,
            request_bytes=plan.request_bytes,
            direct=plan.read_mode == "direct",
            drop_behind=limited or bool(plan.streamed),
        ),
    )


def _ledger(budget: int | None, margin: int) -> Ledger:
    """Books that begin with what the process takes already."""
    ledger = Ledger(budget, margin)
    ledger.take("interpreter", process_memory().total)
    return ledger
