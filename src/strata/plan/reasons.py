"""One line of reason for each choice of a Plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from strata.backends.kv_types import KV_BLOCK
from strata.kv import pool_blocks
from strata.machine import constants
from strata.machine.machine import DiskRate, Machine
from strata.plan.memory_model import Sizes
from strata.plan.outline import Outline
from strata.plan.plan import Choice, Limits, Prediction, Workload
from strata.plan.routes import curve_for
from strata.program import StateGroup
from strata.sizes import format_budget, format_size


def explain(
    model: Outline,
    machine: Machine,
    workload: Workload,
    sizes: Sizes,
    read: DiskRate,
    prediction: Prediction,
    *,
    resident: frozenset[str],
    budget: int,
    given: bool,
    limits: Limits,
    room_for_a_grammar: int,
) -> tuple[Choice, ...]:
    """The choices in the order in which people ask for them."""
    choices = [
        _budget(machine, limits, budget, given),
        _weights(model, resident, sizes, prediction),
    ]
    if sizes.expert_slots:
        choices.append(_experts(model, workload, sizes, prediction))
    if sizes.ring_bytes:
        choices += [
            Choice(
                "ring",
                format_size(sizes.ring_bytes),
                "three quarters on its way from the disk, the rest in use, ready, or its end",
            )
        ]
    if sizes.streams:
        choices.append(_reading(machine, sizes, read))
    return (
        *choices,
        _sweep(workload, sizes),
        *_guesses(workload, sizes, prediction),
        _context(model, workload, sizes, prediction),
        *_kv(model, sizes, prediction),
        *_beside(workload, sizes, room_for_a_grammar),
        Choice("threads", str(sizes.threads), f"of {machine.cores} cores, with {machine.isa}"),
    )


def _budget(machine: Machine, limits: Limits, budget: int, given: bool) -> Choice:
    if given and limits.memory is not None and budget == limits.budget != limits.memory:
        why = f"all that is there, and less than the {format_size(limits.memory)} given"
        return Choice("budget", format_size(budget), why)
    if given:
        return Choice("budget", format_size(budget), "as given")
    left = format_size(machine.memory_available - budget)
    free = format_size(machine.memory_available)
    return Choice("budget", format_size(budget), f"{free} are free; {left} are left to others")


def _weights(
    model: Outline, resident: frozenset[str], sizes: Sizes, prediction: Prediction
) -> Choice:
    count, total = len(resident), len(model.units)
    streamed = sum(u.streamed_bytes for u in model.units if u.name not in resident)
    if not streamed and sizes.expert_slots:
        held = format_size(prediction.memory.resident)
        return Choice("weights", f"{held} stay in memory", "all that every sweep reads")
    if not streamed:
        held = format_size(prediction.memory.resident)
        return Choice("weights", f"{held} stay in memory", "everything fits the budget")
    value = f"{count} of {total} units stay, {format_size(streamed)} stream in every sweep"
    if not count:
        return Choice("weights", value, "none fits beside what must be there")
    why = "what fits stays, spread evenly so that the disk is never idle"
    head = {unit.name for s in model.segments if s.selects for unit in s.units}
    if head <= resident:
        # By itself it would be read with too little beside it.
        why = f"the head, and of the rest {why}"
    return Choice("weights", value, why)


def _experts(model: Outline, workload: Workload, sizes: Sizes, prediction: Prediction) -> Choice:
    rows = workload.concurrency
    held = format_size(prediction.memory.experts)
    value = f"{sizes.expert_slots} of {model.profile.experts} at a time, {held}"
    needed = sum(unit.needed(rows) * unit.expert_bytes for unit in model.units)
    read = format_size(round(needed * (1 - prediction.expert_hit_rate)))
    what = "token" if rows == 1 else f"{rows} tokens"
    curve = curve_for(model.hits, rows, sizes.expert_slots)
    how, kept = "if all are chosen alike", ""
    if curve is not None:
        how = f"by the {curve.tokens} tokens whose routes were recorded"
        kept = f"; of them a use best counts {curve.decay:g} times as much after each token"
    return Choice(
        "experts",
        value,
        f"{how} {prediction.expert_hit_rate:.0%} of those needed are there: a "
        f"{what} needs {format_size(round(needed))} and reads {read}{kept}",
    )


def _reading(machine: Machine, sizes: Sizes, read: DiskRate) -> Choice:
    other = [d.bytes_s for d in machine.disk if d.mode != read.mode]
    rate = f"{read.bytes_s / 1e9:.2f} GB/s"
    why = f"the probe reached {rate} with {read.depth} of them at once"
    if other:
        kind = "buffered" if read.mode == "direct" else "direct"
        why += f", {kind} reads {max(other) / 1e9:.2f} GB/s"
    value = f"{read.mode}, {read.request_bytes >> 10} KiB, {sizes.io_threads} threads"
    return Choice("reading", value, why)


def _sweep(workload: Workload, sizes: Sizes) -> Choice:
    tokens = workload.prompt_tokens * workload.concurrency
    sweeps = -(-tokens // sizes.max_tokens)
    value = f"up to {sizes.max_tokens} tokens"
    if sweeps == 1:
        return Choice("sweep", value, "the prompt goes through the weights once")
    return Choice("sweep", value, f"{tokens} tokens of prompts take {sweeps} sweeps")


def _guesses(workload: Workload, sizes: Sizes, prediction: Prediction) -> list[Choice]:
    if not workload.draft_tokens:
        return []
    if not sizes.drafts.tokens or len(prediction.rows_s) < 2:
        return [Choice("guesses", "none", "there is no room for more rows of logits")]
    rows, seconds = len(prediction.rows_s) - 1, prediction.rows_s
    times = seconds[rows] / seconds[0]
    # What a guess has to be right as often as, where it is one of so many.
    least = (times - 1) / ((1 << rows) - 1)
    by_model = workload.draft_model_bytes
    beside = f", by a model of {format_size(by_model)}" if by_model else ""
    return [
        Choice(
            "guesses",
            f"up to {sizes.drafts.tokens} tokens ahead{beside}",
            f"{1 << rows} rows take {times:.2f} times as long as one: they pay where one in "
            f"{1 / least:.3g} is right"
            if least > 0.001
            else "rows cost next to nothing here",
        )
    ]


def _context(model: Outline, workload: Workload, sizes: Sizes, prediction: Prediction) -> Choice:
    context = sizes.context
    kv = format_size(prediction.memory.kv)
    value = f"{context} positions for {workload.concurrency}, {kv} of {sizes.kv_type} KV"
    reason = _why_context(model, workload, context)
    if saved := _saved_by_windows(model, sizes):
        reason += f"; windows save {format_size(saved)}"
    return Choice("context", value, reason)


def _kv(model: Outline, sizes: Sizes, prediction: Prediction) -> list[Choice]:
    """What a position takes, and where it lies."""
    growing = [not group.recurrent and not group.window for group in model.groups]
    if not any(growing):
        return []
    block = model.kv_bytes([int(grows) for grows in growing], sizes.kv_type)
    value = f"{format_size(block // KV_BLOCK)} a position as {sizes.kv_type}"
    if not sizes.kv_slots:
        return [Choice("kv", value, "all in memory")]
    held, every = sizes.kv_slots, sizes.kv_blocks[0]
    file = format_size(model.profile.kv_file_bytes(sizes.kv_type, every))
    read = "nothing is read" if not prediction.kv_read_bytes else ""
    read = read or f"{format_size(prediction.kv_read_bytes)} of it are read"
    positions = f"{held * KV_BLOCK} of {every * KV_BLOCK} positions in memory"
    return [
        Choice(
            "kv",
            f"{value}, {positions}",
            f"the others in a file of {file}; {read} for a token of the predicted answer",
        )
    ]


def _beside(workload: Workload, sizes: Sizes, room_for_a_grammar: int) -> list[Choice]:
    if not workload.serving:
        return []
    requests = Choice(
        "requests",
        format_size(sizes.beside.admitted_bytes),
        "for large ones beside KV; more in larger budgets",
    )
    grammars = sizes.beside.grammars
    if not grammars:
        smallest = f"{format_budget(room_for_a_grammar)} have room for one"
        return [requests, Choice("grammars", "none", smallest)]
    return [requests, Choice("grammars", f"{grammars} at once", "JSON schemas, modes and the like")]


def _saved_by_windows(model: Outline, sizes: Sizes) -> int:
    """Bytes of KV that would be held beside this if windowed layers kept all positions; 0 where
    it is less than all requests can need, because a bound shares it out."""

    def needed(groups: Sequence[StateGroup]) -> int:
        blocks = pool_blocks(
            groups,
            model.profile.block_nbytes(sizes.kv_type),
            context=sizes.context,
            parallel=sizes.parallel,
            step_rows=sizes.max_tokens,
        )
        assert blocks is not None, "nothing bounds it"
        return model.kv_bytes(blocks, sizes.kv_type)

    held = model.kv_bytes(sizes.kv_blocks, sizes.kv_type)
    if held < needed(model.groups):
        return 0
    every = [replace(group, window=0, beginning=0) for group in model.groups]
    return needed(every) - held


def _why_context(model: Outline, workload: Workload, context: int) -> str:
    if workload.context is not None:
        return "as given"
    if context >= constants.DEFAULT_CONTEXT:
        return "the usual length"
    if context == model.context:
        return "as much as the model has"
    if context == workload.prompt_tokens + workload.answer_tokens:
        return "a prompt and its answer; more would take from the weights"
    share = f"{constants.DEFAULT_KV_SHARE:.0%}"
    return f"as much as {share} of the budget holds"
