"""From load options to a Plan to a backend: what was decided is what is executed."""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import strata._native as _native
from strata.backends.base import Backend
from strata.backends.kv_types import KVType, choose_kv_type
from strata.backends.registry import DEFAULT, backend_class
from strata.backends.settings import ActivationsName, BackendSettings, Reading
from strata.backends.weights import WeightSource
from strata.engine import hot_experts
from strata.engine.draft_choice import OwnPart, parse_draft
from strata.engine.engine import TOKEN_BUDGET
from strata.engine.kv_quality import CHOICE, KVChoice, quickest
from strata.engine.routes import known_hits
from strata.engine.runner import LoadProgress, Runner
from strata.engine.texts import OWNER as TEXTS
from strata.engine.texts import TextWorkload
from strata.errors import StrataError, UsageError
from strata.formats import ModelFile
from strata.guard.known_templates import is_known
from strata.hub.downloads import strata_home
from strata.memory import Ledger, LedgerAccount, process_memory
from strata.memory.limits import headrooms, memory_available, memory_free, memory_total
from strata.models.kv_window import KVWindow
from strata.program import Model
from strata.records import dataclass
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.plan import Machine, Plan, Workload
    from strata.plan.planner import Planner
    from strata.text import Tokenizer

_SURELY_FITS = 0.4
"""Of the free memory: a model whose weights take less is run without a Plan being made."""

_ALIKE = 12 << 20
"""By as much a process may differ from the one that the cost model knows without being another."""

_SAMPLING = 20
"""Bytes for each token of the vocabulary while one is chosen: float64 copies, an order, sums."""


class ProbeEndedError(StrataError):
    """The process that measures this machine has no room, or was ended."""


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
    ``parallel``, or what makes that with the model's tokenizer; ``planned`` asks for a Plan in any
    case.
    ``kv_type`` None leaves it to the backend, or to the Plan where there are ``kv_choices``, the
    most exact first, for a loss of ``quality``; ``kv_bytes`` bounds the KV of all requests, and
    ``kv_store`` is a directory for prefixes; ``kv_window`` is all that is kept of what would keep
    all positions, and ``kv_read`` positions are all that rows see of it (0: all), either of which
    changes answers. ``slowdown`` bounds what a prompt costs those who
    read answers meanwhile, which takes a Plan too. ``serving`` says
    that requests come over HTTP. ``process_bytes`` is ``base_memory``, where it was asked for in
    time. ``backend`` is a name that ``strata.backends.registry`` knows.
    ``embedding``: the model gives embeddings, and has no head. ``together``: more may run than
    ``parallel`` says where memory is not short. ``chat_template`` is used instead of the model's
    own. ``kv_disk`` is a directory for KV that has no room in memory; None is Strata's own folder,
    used where a context does not fit otherwise, and False none. ``draft`` says how tokens are
    guessed ahead, as ``strata.engine.draft_choice`` has it; ``draft_model`` guesses, too (or a part
    of the model itself), and takes ``draft_model_bytes``, which loading finds out.
    ``experts_ahead`` slots at most are for experts that are read before they are chosen.
    ``activations`` is how exactly products take their input.
    """

    memory: int | None = None
    threads: int | None = None
    context: int | None = None
    parallel: int = 1
    together: bool = False
    workload: Workload | TextWorkload | None = None
    planned: bool = False
    kv_type: str | None = None
    kv_choices: tuple[KVChoice, ...] = ()
    quality: str = ""
    kv_bytes: int | None = None
    serving: bool = False
    embedding: bool = False
    process_bytes: int | None = None
    backend: str = DEFAULT
    kv_store: Path | None = None
    kv_store_bytes: int = 0
    kv_window: KVWindow | None = None
    kv_read: int = 0
    slowdown: float | None = None
    chat_template: str | None = None
    kv_disk: Path | Literal[False] | None = None
    experts_ahead: int = 0
    activations: ActivationsName = "int8"
    draft: str = "off"
    draft_model: Path | OwnPart | None = None
    draft_model_bytes: int = 0

    @property
    def wants_plan(self) -> bool:
        """Whether a Plan is made in any case."""
        asked = (self.memory, self.slowdown, self.kv_disk)
        return self.planned or bool(self.kv_choices) or any(x is not None for x in asked)


@dataclass
class Runtime:
    """A backend made as a Plan has it, and the books of its memory.

    ``guarded`` is the account of guarded processes. ``limited`` says that a budget was given, by
    itself or in a Plan: then it is held, and the page cache is part of it. ``options`` are those by
    which another Plan would be made, for a tokenizer of ``tokenizer_bytes``. Plan, sizes and
    settings change with the budget (``live_budget.py``).
    """

    backend: Backend
    ledger: Ledger
    guarded: LedgerAccount
    plan: Plan | None
    machine: Machine | None
    file: ModelFile
    context: int
    parallel: int
    token_budget: int
    logit_rows: int
    kv_type: KVType
    settings: BackendSettings
    options: LoadOptions
    tokenizer: Tokenizer
    tokenizer_bytes: int
    limited: bool = False

    @property
    def threads(self) -> int | None:
        """Threads that compute; None for a backend that has none to choose."""
        return self.backend.threads

    @property
    def device(self) -> str:
        """What computes: for the native backend an instruction set."""
        return self.backend.device

    @property
    def kv_choice(self) -> str | None:
        """Which type KV has and why, where a loss was allowed and the Plan chose."""
        choices = () if self.plan is None else self.plan.choices
        return next((f"{c.value}: {c.reason}" for c in choices if c.name == CHOICE), None)

    @property
    def weights_bytes(self) -> int:
        """Bytes of weights held, those that two Segments share counted once."""
        return self.ledger.owned.get("weights", 0)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot for an expert; 0 where none is in slots."""
        slots = self.settings.expert_slots
        return self.ledger.owned.get("experts", 0) // slots if slots else 0

    def runner(self, model: Model, weights: WeightSource, progress: LoadProgress | None) -> Runner:
        """A Runner whose weights are loaded."""
        resident, entered = process_memory().total, self.ledger.total
        runner = Runner(
            self.backend,
            model,
            weights,
            progress,
            logit_rows=self.logit_rows,
        )
        self.ledger.take("sampling", _SAMPLING * model.vocab_size)
        entered += _SAMPLING * model.vocab_size
        # What came beside the weights: nodes, Ops and their names.
        grown = process_memory().total - resident
        self.ledger.take("runtime", max(0, grown - (self.ledger.total - entered)))
        return runner

    def ready(self) -> None:
        """Everything is loaded: begin to read ahead, and give back what loading left behind."""
        self.backend.prepare()
        self._begin_with_experts()
        if self.limited:
            self.file.forget_cached()
        _native.give_back_memory()

    def close(self) -> None:
        """Free the weights and what running takes; nothing can be run afterwards."""
        if slots := self.backend.expert_slots():
            hot_experts.keep(self.file.paths[0], *slots.scores())
        self.backend.close()
        _native.give_back_memory()

    def _begin_with_experts(self) -> None:
        if slots := self.backend.expert_slots():
            sizes, _ = slots.scores()
            scores = hot_experts.recall(self.file.paths[0], sizes)
            if scores is not None:
                slots.begin_with(scores)

    def check_integrity(self) -> None:
        """LedgerError if the process takes more memory than its owners entered."""
        self.ledger.check_integrity(process_memory().total)


def make_runtime(
    file: ModelFile,
    model: Model,
    options: LoadOptions,
    plan: Plan | None = None,
    *,
    tokenizer: Tokenizer,
    tokenizer_bytes: int,
) -> Runtime:
    """The backend that is asked for, by a Plan: the one given, else one made for the options.

    Nothing is loaded yet. Raises BudgetTooSmall.
    """
    kind = backend_class(options.backend)
    if not kind.plans and (plan is not None or options.memory is not None):
        raise UsageError(f"the {kind.name} backend keeps to no memory budget; the cpu backend does")
    if options.activations != "int8" and not kind.plans:
        raise UsageError(
            f"the {kind.name} backend does not quantise activations; the cpu backend does"
        )
    if options.kv_choices and (plan is not None or not kind.plans):
        raise UsageError("what KV may lose is chosen with a Plan, which the cpu backend makes")
    machine = None
    limited = options.memory is not None or plan is not None
    if plan is None and kind.plans and needs_plan(file, options):
        machine = this_machine(file)
        if isinstance(options.workload, TextWorkload):
            books = _ledger(options.memory, 0, tokenizer_bytes)
            options = replace(options, workload=options.workload.made(tokenizer, books))
        plan = make_plan(file, model, machine, options, kind, tokenizer_bytes)
    if plan is None:
        ledger = _ledger(None, 0, tokenizer_bytes)
        context, parallel = model.context_length, options.parallel
        # A text that is seen as a whole is in one step.
        token_budget = TOKEN_BUDGET if model.causal else context
        settings = BackendSettings(
            max_tokens=token_budget,
            positions=context,
            parallel=parallel,
            activations=options.activations,
        )
        backend = kind.create(options.threads, None, settings, ledger)
    else:
        _check_plan(plan, model)
        budget = plan.budget if limited else None
        ledger = _ledger(budget, plan.predicted.memory.margin, tokenizer_bytes)
        if options.workload is not None and not isinstance(options.workload, TextWorkload):
            ledger.take(TEXTS, options.workload.text_bytes)
        settings = settings_of(plan, kv_directory(options, plan), limited=limited)
        token_budget, context, parallel = plan.max_tokens, plan.context, plan.parallel
        backend = kind.create(plan.threads, plan.isa, settings, ledger)
    guarded = LedgerAccount(ledger, "guard")
    if tokenizer.renderer is not None:
        tokenizer.renderer.account = guarded
        if plan is not None:
            tokenizer.renderer.nbytes = plan.template_bytes
    return Runtime(
        backend,
        ledger,
        guarded,
        plan,
        machine,
        file,
        context,
        parallel,
        token_budget,
        settings.max_logit_rows,
        choose_kv_type(plan.kv_type if plan else options.kv_type, backend.kv_types),
        settings,
        options,
        tokenizer,
        tokenizer_bytes,
        limited,
    )


def settled_memory() -> int:
    """Resident bytes of this process, without what was freed."""
    _native.give_back_memory()
    return process_memory().total


def base_memory(*, planned: bool) -> int:
    """Resident bytes of this process before a model is opened, with the libraries that a run comes
    to need, and without what importing left behind: that is used again. Where nothing is planned
    nobody looks so closely, and what may not be needed is not imported."""
    import tokenizers  # noqa: F401

    if planned:
        import strata.guard.templates
        import strata.machine.probe  # noqa: F401

        gc.collect()
    _native.give_back_memory()
    return process_memory().total


def this_machine(file: ModelFile) -> Machine:
    """This machine and the disk under a model. What is not known yet, or doubted while the machine
    is at rest, is measured by a process of its own, so that measuring takes nothing of our budget.
    What is doubted is used where that does not work. Raises DiskProbeError and ProbeEndedError."""
    from strata.machine.other_work import at_rest
    from strata.machine.probe import LEAST_BYTES, is_doubted, keep_doubted, known_machine, probe
    from strata.plan import Machine, from_json

    path = file.paths[0]
    known = known_machine(path)
    if known is not None and not (is_doubted(path) and at_rest()):
        return known
    unknown = f"this machine is not known yet: run `strata probe {file.path}` once where there is "
    if headrooms() and (free := memory_free()) < LEAST_BYTES:
        if known is not None:
            return known
        raise ProbeEndedError(
            f"{unknown}more memory; measuring it takes {format_size(LEAST_BYTES)}, and "
            f"{format_size(free)} are free"
        )
    command = [sys.executable, "-c", _PROBE, str(path)]
    import subprocess

    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return from_json(Machine, json.loads(done.stdout))
    if known is not None:
        keep_doubted(path)
        return known
    if done.returncode < 0:
        # Here it would take the memory of which there was too little there.
        raise ProbeEndedError(
            f"{unknown}more memory; measuring it was ended by the system, mostly for want of that"
        )
    # One that failed says here why.
    return probe(path)[0]


def smallest_budget(file: ModelFile, model: Model, options: LoadOptions) -> int:
    """Bytes of the least budget in which a Plan can be made, whatever a text comes to; 0 where that
    given is one."""
    from strata.plan import BudgetTooSmall

    if isinstance(options.workload, TextWorkload):
        most = options.workload.at_most
        fits = max(1, model.context_length - most.answer_tokens)
        most = replace(most, prompt_tokens=min(most.prompt_tokens, fits))
        options = replace(options, workload=most)
    try:
        make_plan(file, model, this_machine(file), options, backend_class(options.backend))
    except BudgetTooSmall as error:
        return error.smallest
    return 0


def needs_plan(file: ModelFile, options: LoadOptions) -> bool:
    """Whether a Plan is asked for, or the weights do not surely fit into free memory."""
    if options.wants_plan:
        return True
    return file.nbytes > _SURELY_FITS * memory_available()


def make_plan(
    file: ModelFile,
    model: Model,
    machine: Machine,
    options: LoadOptions,
    kind: type[Backend],
    tokenizer_bytes: int | None = None,
) -> Plan:
    """The Plan for what is asked for, or for a usual workload. A tokenizer that is there already
    takes ``tokenizer_bytes``, not what it is thought to."""
    if options.kv_choices and options.kv_type is None:

        def made(kv_type: str) -> Plan:
            chosen = replace(options, kv_type=kv_type)
            return make_plan(file, model, machine, chosen, kind, tokenizer_bytes)

        return quickest(made, options.kv_choices, options.quality)
    from strata.machine import constants
    from strata.plan import BudgetTooSmall

    planner, process = make_planner(file, model, machine, options, kind, tokenizer_bytes)
    try:
        return planner.plan(planner.limits.budget)
    except BudgetTooSmall as error:
        others = process - constants.PROCESS
        if options.memory is None or others < _ALIKE:
            raise
        raise BudgetTooSmall(
            f"of {format_size(options.memory)} this process takes {format_size(others)} for other "
            f"things: {error}",
            error.smallest,
        ) from None


def make_planner(
    file: ModelFile,
    model: Model,
    machine: Machine,
    options: LoadOptions,
    kind: type[Backend],
    tokenizer_bytes: int | None = None,
) -> tuple[Planner, int]:
    """What makes Plans for ``make_plan``, of any budget; and the bytes of the process by itself."""
    from strata.machine import constants
    from strata.plan import Limits, Workload
    from strata.plan.memory_model import server_bytes
    from strata.plan.outline import outline
    from strata.plan.planner import Planner

    workload = options.workload
    assert not isinstance(workload, TextWorkload)
    if workload is None:
        half = (options.context or model.context_length) // 2
        usual = Workload()
        workload = replace(
            usual,
            prompt_tokens=max(1, min(usual.prompt_tokens, half)),
            answer_tokens=min(usual.answer_tokens, half),
        )
    workload = replace(
        workload,
        concurrency=options.parallel,
        context=options.context,
        serving=options.serving,
        draft_tokens=parse_draft(options.draft).tokens,
        draft_model_bytes=options.draft_model_bytes,
    )
    profile = kind.profile(model, WeightSource(file), options.activations)
    kv_type = choose_kv_type(options.kv_type, profile.kv_types).name
    sizes = outline(file.path.name, model, file, profile, known_hits(file.paths))
    if options.chat_template is not None:
        sizes = replace(sizes, foreign_template=not is_known(options.chat_template))
    process = options.process_bytes or base_memory(planned=True)
    if options.serving:
        # Of a server's libraries some are here already.
        process = max(constants.PROCESS, process - server_bytes(workload))
    process += workload.text_bytes
    if options.kv_store:
        from strata.kv.store import loading_bytes

        process += loading_bytes(max(profile.block_nbytes(kv_type), default=0))
    # It has taken what building takes, however little it keeps.
    sizes = replace(sizes, tokenizer=replace(sizes.tokenizer, kept=tokenizer_bytes))
    limits = Limits(
        memory=options.memory,
        threads=options.threads,
        kv_type=kv_type,
        kv_bytes=options.kv_bytes,
        slowdown=options.slowdown,
        process_bytes=process,
        # Exact KV on disk is one of the choices.
        kv_disk=None
        if options.kv_disk is None and not options.kv_choices
        else options.kv_disk is not False,
        experts_ahead=options.experts_ahead,
        kv_window="" if options.kv_window is None else str(options.kv_window),
        kv_read=options.kv_read,
    )
    return Planner(sizes, machine, limits, workload), process


def _check_plan(plan: Plan, model: Model) -> None:
    from strata.plan.plan import FORMAT_VERSION

    if plan.version != FORMAT_VERSION:
        raise UsageError(
            f"this plan has format version {plan.version}, and only version {FORMAT_VERSION} is "
            "known: make it anew"
        )
    names = [unit.name for segment in model.segments for unit in segment.units]
    units = sorted((*plan.resident, *plan.streamed))
    if units != sorted(names) or len(plan.kv_blocks) != len(model.groups):
        raise UsageError(f"this plan was made for another model: {plan.model}")
    there = memory_total()
    if there and plan.predicted.peak_bytes > there:
        raise UsageError(
            f"this plan takes {format_size(plan.predicted.peak_bytes)}, and there are "
            f"{format_size(there)} here: make one for this machine"
        )


def kv_directory(options: LoadOptions, plan: Plan) -> str:
    """Where KV lies that has no room in memory; empty where all of it has."""
    if not plan.kv_slots:
        return ""
    if isinstance(options.kv_disk, Path):
        return str(options.kv_disk)
    home = strata_home()
    # Whoever makes the file says what is wrong with it.
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    return str(home)


def settings_of(plan: Plan, kv_directory: str, *, limited: bool) -> BackendSettings:
    """What a backend is made for by a Plan."""
    return BackendSettings(
        max_tokens=plan.max_tokens,
        max_logit_rows=plan.logit_rows,
        parallel=plan.parallel,
        positions=plan.context,
        streamed=frozenset(plan.streamed),
        ring_bytes=plan.ring_bytes,
        tile_bytes=plan.tile_bytes,
        row_cache_bytes=plan.row_cache_bytes,
        expert_slots=plan.expert_slots,
        expert_ahead=plan.expert_ahead,
        expert_decay=plan.expert_decay,
        expert_sure=plan.expert_sure,
        kv_slots=plan.kv_slots,
        kv_directory=kv_directory,
        activations=plan.activations,
        reading=Reading(
            threads=plan.io_threads,
            request_bytes=plan.request_bytes,
            direct=plan.read_mode == "direct",
            drop_behind=limited or bool(plan.streamed),
        ),
    )


def _ledger(budget: int | None, margin: int, tokenizer_bytes: int) -> Ledger:
    """Books that begin with what the process takes already."""
    ledger = Ledger(budget, margin)
    ledger.take("interpreter", process_memory().total - tokenizer_bytes)
    ledger.take("tokenizer", tokenizer_bytes)
    return ledger
