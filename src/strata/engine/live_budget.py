"""Another budget while a model is loaded, between two steps: by the Plan that is made for it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import strata._native as _native
from strata.backends.registry import backend_class
from strata.engine.drafts import follow
from strata.engine.engine import Engine
from strata.engine.kv_quality import CHOICE
from strata.engine.runtime import (
    LoadOptions,
    Runtime,
    kv_directory,
    make_plan,
    settings_of,
    this_machine,
)
from strata.engine.texts import TextWorkload
from strata.errors import UsageError
from strata.kv import least_blocks
from strata.memory.limits import memory_total

if TYPE_CHECKING:
    from strata.plan import Machine, Plan

_LAID_OUT = (
    *("weights", "ring", "rows", "experts", "staging"),
    *("activations", "rope tables", "logits", "kv"),
)
"""Owners of what a Plan lays out anew; what others hold stays as it is."""

_IN_SHARES = ("sampling",)
"""Owners of what is in a Plan's share of logits, and stays."""


def set_budget(runtime: Runtime, engine: Engine, memory: int) -> Plan:
    """Run by the Plan that loading with a budget of ``memory`` bytes would make, of the context and
    the number of requests there are; less KV is shared by them where there is no room for all.

    Between two steps of ``engine``. Memory that is not needed any more goes back to the system; who
    runs keeps the bits of the answer. Raises BudgetTooSmall, with the smallest budget, UsageError
    and WeightReadError; then nothing has changed.
    """
    from strata.machine.probe import known_machine

    memory = min(memory, memory_total() or memory)
    kind = backend_class(runtime.options.backend)
    if not kind.plans:
        raise UsageError(f"the {kind.name} backend keeps to no memory budget; the cpu backend does")
    # Answers wait meanwhile: what is known is good enough, even where it is doubted.
    known = runtime.machine or known_machine(runtime.file.paths[0])
    machine = known or this_machine(runtime.file)
    plan = _plan(runtime, engine, machine, memory)
    ledger = runtime.ledger
    settings = settings_of(plan, kv_directory(runtime.options, plan), limited=True)
    before = ledger.budget, ledger.margin
    # Meanwhile the larger one holds.
    ledger.budget = None if before[0] is None else max(before[0], plan.budget)
    ledger.margin = max(before[1], plan.predicted.memory.margin)
    try:
        engine.rearrange(settings, runtime.settings, plan.kv_blocks, plan.prefill_budget)
    except BaseException:
        ledger.budget, ledger.margin = before
        raise
    ledger.budget, ledger.margin = plan.budget, plan.predicted.memory.margin
    runtime.plan, runtime.machine, runtime.settings = plan, machine, settings
    runtime.token_budget, runtime.logit_rows = plan.max_tokens, plan.logit_rows
    runtime.limited = True
    if engine.drafting is not None:
        follow(engine.drafting, plan)
    if runtime.tokenizer.renderer is not None:
        runtime.tokenizer.renderer.nbytes = plan.template_bytes
    runtime.file.forget_cached()
    _native.give_back_memory()
    return plan


def _plan(runtime: Runtime, engine: Engine, machine: Machine, memory: int) -> Plan:
    from strata.plan import BudgetTooSmall

    options, workload = runtime.options, runtime.options.workload
    assert not isinstance(workload, TextWorkload)
    if workload is not None:
        prompt = min(workload.prompt_tokens, max(1, engine.context - 1))
        answer = min(workload.answer_tokens, engine.context - prompt)
        workload = replace(workload, prompt_tokens=prompt, answer_tokens=answer)
    options = replace(
        options,
        memory=memory,
        workload=workload,
        context=engine.context,
        parallel=runtime.parallel,
        threads=runtime.threads,
        kv_type=runtime.kv_type.name,
        activations=runtime.settings.activations,
    )

    def made(options: LoadOptions) -> Plan:
        kind = backend_class(options.backend)
        taken = runtime.tokenizer_bytes
        return make_plan(runtime.file, engine.runner.model, machine, options, kind, taken)

    for kv_bytes in _kv_bounds(runtime, engine):
        try:
            options = replace(options, kv_bytes=kv_bytes)
            plan = made(options)
            if (more := _others(runtime) - _for_others(plan)) > 0:
                # Texts, requests and guarded processes hold more than a beginning would.
                taken = options.process_bytes or 0
                plan = made(replace(options, process_bytes=taken + more))
            # The type of KV stays as it was chosen.
            before = () if runtime.plan is None else runtime.plan.choices
            kept = (choice for choice in before if choice.name == CHOICE)
            return replace(plan, choices=(*plan.choices, *kept))
        except BudgetTooSmall as reason:
            error = reason
    raise error


def _kv_bounds(runtime: Runtime, engine: Engine) -> list[int | None]:
    """What all requests together may have: as they were given, and less and less of it down to what
    holds one of them."""
    model, kv_type = engine.runner.model, runtime.kv_type
    sizes = [kv_type.block_nbytes(model.state, group) for group in model.groups]
    blocks = least_blocks(model.groups, context=engine.context, step_rows=runtime.parallel + 16)
    least = sum(count * size for count, size in zip(blocks, sizes, strict=True))
    bounds: list[int | None] = [runtime.options.kv_bytes]
    most = runtime.options.kv_bytes or least * runtime.parallel
    while (most := most // 2) > least:
        bounds.append(most)
    return [*bounds, least] if runtime.parallel > 1 else bounds


def _others(runtime: Runtime) -> int:
    """Bytes of owners of which no Plan disposes while a model is loaded."""
    kept = (*_LAID_OUT, *_IN_SHARES)
    return sum(n for who, n in runtime.ledger.owned.items() if who not in kept)


def _for_others(plan: Plan) -> int:
    """Bytes that a Plan has for them."""
    shares = plan.predicted.memory
    return shares.interpreter + shares.tokenizer + shares.server + shares.guard + shares.drafts
