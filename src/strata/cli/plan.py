"""``strata plan``: how a model would run here, and how fast, before it is loaded or downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strata.cli.console import print_json, print_table, printable, progress_bars, remark
from strata.cli.engine_options import draft_options, kv_seen_options
from strata.cli.options import (
    KV_TYPE,
    SIZE,
    json_option,
    model_argument,
    offline_option,
    quiet_option,
    threads_option,
)
from strata.sizes import format_seconds, format_size, format_speed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strata.formats import ModelFile
    from strata.plan import Limits, Machine, Plan, Workload
    from strata.plan.throughput import Throughput

_PROMPT = 512
"""Tokens of the prompt that is predicted for, where nothing is said and the context has room."""


@click.command("plan")
@model_argument
@click.option(
    "-m",
    "--memory",
    type=SIZE,
    default=None,
    help="Memory budget (default: the memory that is free).",
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=1),
    default=None,
    help="Tokens of a request: prompt and answer.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=None,
    help=f"Length of the prompt to predict for.  [default: {_PROMPT}, or half the context]",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Length of the answer to predict for.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Requests that run at the same time.",
)
@click.option(
    "--machine",
    "machine_file",
    type=click.Path(path_type=Path),
    default=None,
    help="Plan for the machine of this file (of `strata probe --json`) instead of this one.",
)
@click.option(
    "--kv-type",
    type=KV_TYPE,
    default="f16",
    show_default=True,
    help="How keys and values are kept.",
)
@kv_seen_options
@click.option("--fit", is_flag=True, help="Say which quantisation of MODEL is best for the budget.")
@click.option(
    "--throughput", "many", is_flag=True, help="Say how speed grows with requests together."
)
@draft_options
@threads_option
@offline_option
@quiet_option
@json_option
def command(
    model: str,
    memory: int | None,
    context: int | None,
    prompt_tokens: int | None,
    answer_tokens: int,
    concurrency: int,
    machine_file: Path | None,
    kv_type: str,
    kv_window: str | None,
    kv_read: int,
    fit: bool,
    many: bool,
    draft: str,
    draft_model: str | None,
    threads: int | None,
    offline: bool | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show how MODEL would run in a budget, how fast, and what more memory would gain.

    Reads headers only. MODEL may be on the hub and not downloaded, or the name of a shape with a
    quantisation, such as llama-3.1-70b:Q4_K_M (`strata synth --list` has them all).
    """
    from dataclasses import replace

    from strata.backends.registry import DEFAULT, backend_class
    from strata.backends.weights import WeightSource
    from strata.engine.draft_choice import own_part, parse_draft
    from strata.engine.draft_files import planned_bytes
    from strata.engine.routes import known_hits
    from strata.machine.probe import load_machine
    from strata.models import build_model
    from strata.models.kv_read import with_part_seen
    from strata.models.kv_window import KVWindow
    from strata.plan import Limits, Workload, to_json
    from strata.plan.budgets import budget_table
    from strata.plan.outline import outline
    from strata.plan.planner import plan
    from strata.plan.throughput import throughput

    guesses = parse_draft(draft).tokens
    asked = prompt_tokens or _PROMPT
    workload = Workload(asked, concurrency, context, answer_tokens, draft_tokens=guesses)
    if draft_model is not None:
        part = own_part(draft_model)
        of = draft_model if part is None else model
        with (
            _header(of, offline, quiet or as_json) as file,
            _header(model, offline, quiet or as_json) as target,
        ):
            nbytes = planned_bytes(file, target, context, concurrency, threads, part)
        workload = replace(workload, draft_model_bytes=nbytes)
    with _header(model, offline, quiet or as_json) as file:
        built = build_model(file)
        window = None if kv_window is None else KVWindow.parse(kv_window)
        most = max(built.context_length, context or 0)
        built = with_part_seen(built, window, kv_read, most)
        if prompt_tokens is None:
            half = (context or built.context_length) // 2
            workload = replace(workload, prompt_tokens=max(1, min(_PROMPT, half)))
        profile = backend_class(DEFAULT).profile(built, WeightSource(file))
        sizes = outline(model, built, file, profile, known_hits(file.paths))
        if machine_file is not None:
            machine = load_machine(machine_file)
        else:
            machine = _this_machine(file, quiet or as_json)
        limits = Limits(
            memory,
            threads,
            kv_type,
            there=machine.memory_total or None,
            kv_window="" if window is None else str(window),
            kv_read=kv_read,
        )
        if fit:
            _fit(model, file, machine, limits, workload, as_json)
            return
        if many:
            # As `strata batch` runs them.
            served = replace(workload, serving=True)
            _print_throughput(throughput(sizes, machine, limits, served), as_json)
            return
        result = plan(sizes, machine, limits, workload)
        table = budget_table(sizes, machine, limits, workload)
    pull = _pull(model)
    if as_json:
        budgets = [{"budget": p.budget, "predicted": to_json(p.predicted)} for p in table]
        print_json({"plan": to_json(result), "budgets": budgets, "pull": pull})
        return
    _print(result, table)
    if pull is not None:
        click.echo(f"\nto download it: {pull}")


def _print_throughput(found: Sequence[Throughput], as_json: bool) -> None:
    """Each number of requests together, and where computing overtakes reading."""
    from strata.plan import to_json
    from strata.plan.throughput import best

    chosen = best(found)
    border = next((t.together for t in found if not t.reading_decides), None)
    if as_json:
        print_json(
            {
                "best": chosen.together,
                "computing_overtakes_reading": border,
                "together": [
                    {
                        "together": t.together,
                        "tok_s": t.tok_s,
                        "context": t.plan.context,
                        "predicted": to_json(t.plan.predicted),
                    }
                    for t in found
                ],
            }
        )
        return
    print_table(
        ("TOGETHER", "ALL IN ALL", "DECODE", "FIRST TOKENS", "STREAMS", "KV", "BOUND BY", ""),
        [
            (
                str(t.together),
                format_speed(t.tok_s),
                format_speed(t.plan.predicted.decode_tok_s),
                format_seconds(t.plan.predicted.ttft_s),
                format_size(t.plan.predicted.sweep_bytes),
                format_size(t.plan.predicted.memory.kv),
                t.plan.predicted.bound,
                "best" if t is chosen else "",
            )
            for t in found
        ],
    )
    if border is None:
        click.echo("\nreading decides throughout: more together would give more still")
    elif border == 1:
        click.echo("\ncomputing decides throughout: more together gains by using weights for more")
    else:
        click.echo(f"\ncomputing overtakes reading at {border} together")


def _fit(
    model: str,
    file: ModelFile,
    machine: Machine,
    limits: Limits,
    workload: Workload,
    as_json: bool,
) -> None:
    from strata.cli.plan_fit import as_object, fits, print_fits

    found, measured = fits(model, file, machine, limits, workload)
    budget = next((f.plan.budget for f in found if f.plan), limits.memory or 0)
    if as_json:
        print_json({"model": model, "budget": budget, **as_object(found, measured)})
    else:
        print_fits(model, budget, found, measured)


def _header(model: str, offline: bool | None, silent: bool) -> ModelFile:
    from strata.formats import open_model
    from strata.hub.cache import HubRef, find_cached
    from strata.hub.downloads import ModelNotFound
    from strata.hub.references import parse, resolve
    from strata.hub.remote import remote_header
    from strata.synth import SHAPES, describe

    name, _, recipe = model.partition(":")
    if name.lower() in SHAPES and not Path(model).exists():
        return describe(SHAPES[name.lower()], recipe or "Q4_K_M")
    reference = parse(model)
    if isinstance(reference, HubRef) and find_cached(reference) is None:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE if offline is None else offline:
            raise ModelNotFound(f"{reference} is not on this machine; its header is on the hub")
        return remote_header(reference)
    with progress_bars(silent=silent) as progress:
        return open_model(resolve(model, offline=offline, progress=progress))


def _pull(model: str) -> str | None:
    """The command that downloads the model; None where it is here, or nobody has it."""
    from strata.errors import StrataError
    from strata.hub.cache import HubRef, find_cached
    from strata.hub.references import parse

    try:
        reference = parse(model)
    except StrataError:
        return None
    if not isinstance(reference, HubRef) or find_cached(reference) is not None:
        return None
    return f"strata pull {reference}"


def _this_machine(file: ModelFile, silent: bool) -> Machine:
    from strata.hub.downloads import strata_home
    from strata.machine.probe import probe

    # The disk on which the model lies; for one that is elsewhere, where it would come to lie.
    path = file.paths[0] if file.paths else strata_home()
    machine, _ = probe(path, progress=None if silent else lambda what: remark(f"measuring: {what}"))
    return machine


def _print(plan: Plan, table: tuple[Plan, ...]) -> None:
    p = plan.predicted
    click.echo(f"{printable(plan.model)} on {plan.threads} threads in {format_size(plan.budget)}")
    click.echo()
    rows = [(c.name, c.value, c.reason) for c in plan.choices]
    print_table(("CHOICE", "", "WHY"), rows)
    click.echo()
    shares = _shares(plan)
    print_table(("MEMORY", "BYTES"), [*shares, ("together", format_size(p.memory.total))])
    peak = format_size(p.peak_bytes)
    work = "a prompt of" if p.concurrency == 1 else f"{p.concurrency} prompts of"
    theirs = "its answer" if p.concurrency == 1 else "their answers"
    click.echo(f"{work} {p.prompt_tokens} tokens and {theirs} use {peak} of it")
    click.echo()
    click.echo(f"loading takes {format_seconds(p.load_s)}")
    if p.concurrency == 1:
        click.echo(f"first token of a prompt of {p.prompt_tokens} after {format_seconds(p.ttft_s)}")
        click.echo(f"then {format_speed(p.decode_tok_s)}, bound by {p.bound}")
    else:
        prompts = f"{p.concurrency} prompts of {p.prompt_tokens}"
        click.echo(f"first tokens of all {prompts} after {format_seconds(p.ttft_s)}")
        click.echo(f"then {format_speed(p.decode_tok_s)} together, bound by {p.bound}")
    if p.sweep_bytes:
        click.echo(
            f"each sweep reads {format_size(p.sweep_bytes)} in {format_seconds(p.sweep_read_s)} "
            f"beside {format_seconds(p.sweep_compute_s)} of work"
        )
    click.echo()
    print_table(
        ("BUDGET", "TAKES", "CONTEXT", "STREAMS", "FIRST TOKEN", "DECODE", "BOUND BY"),
        [
            (
                format_size(t.budget),
                format_size(t.predicted.peak_bytes),
                str(t.context),
                format_size(t.predicted.sweep_bytes),
                format_seconds(t.predicted.ttft_s),
                format_speed(t.predicted.decode_tok_s),
                t.predicted.bound,
            )
            for t in table
        ],
    )


def _shares(plan: Plan) -> list[tuple[str, str]]:
    from dataclasses import asdict

    shares: dict[str, Any] = asdict(plan.predicted.memory)
    return [(owner, format_size(nbytes)) for owner, nbytes in shares.items() if nbytes]
