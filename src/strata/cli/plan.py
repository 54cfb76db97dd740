"""``strata plan``: how a model would run here, and how fast, before it is loaded or downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from strata.backends.settings import KVTypeName
from strata.cli.console import print_json, print_table, printable, progress_bars, remark
from strata.cli.options import (
    SIZE,
    json_option,
    model_argument,
    offline_option,
    quiet_option,
    threads_option,
)
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.formats import ModelFile
    from strata.plan import Machine, Plan


@click.command("plan")
@model_argument
@click.option("--memory", type=SIZE, default=None, help="Budget  [default: what is free].")
@click.option("--context", type=click.IntRange(min=1), default=None, help="Positions of a request.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=512, show_default=True)
@click.option("--answer-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--machine",
    "machine_file",
    type=click.Path(path_type=Path),
    default=None,
    help="Plan for the machine of this file (of `strata probe --json`) instead of this one.",
)
@click.option(
    "--kv-type",
    type=click.Choice(get_args(KVTypeName)),
    default="f16",
    show_default=True,
    help="How keys and values are kept.",
)
@threads_option
@offline_option
@quiet_option
@json_option
def command(
    model: str,
    memory: int | None,
    context: int | None,
    prompt_tokens: int,
    answer_tokens: int,
    concurrency: int,
    machine_file: Path | None,
    kv_type: KVTypeName,
    threads: int | None,
    offline: bool | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say how MODEL would run in a budget, how fast, and what more memory would buy.

    Reads headers only. MODEL may be on the hub and not downloaded, or the name of a shape with a
    quantisation, such as llama-3.1-70b:Q4_K_M (`strata synth --list` has them all).
    """
    from strata.backends.registry import DEFAULT, backend_class
    from strata.backends.weights import WeightSource
    from strata.machine.probe import load_machine
    from strata.models import build_model
    from strata.plan import Limits, Workload, outline, plan, to_json
    from strata.plan.budgets import budget_table

    workload = Workload(prompt_tokens, concurrency, context, answer_tokens)
    with _header(model, offline, quiet or as_json) as file:
        built = build_model(file)
        profile = backend_class(DEFAULT).profile(built, WeightSource(file))
        sizes = outline(model, built, file, profile)
        if machine_file is not None:
            machine = load_machine(machine_file)
        else:
            machine = _this_machine(file, quiet or as_json)
        limits = Limits(memory, threads, kv_type, there=machine.memory_total or None)
        result = plan(sizes, machine, limits, workload)
        table = budget_table(sizes, machine, limits, workload)
    if as_json:
        budgets = [{"budget": p.budget, "predicted": to_json(p.predicted)} for p in table]
        print_json({"plan": to_json(result), "budgets": budgets})
        return
    _print(result, table)


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
    click.echo(f"loading takes {_seconds(p.load_s)}")
    if p.concurrency == 1:
        click.echo(f"first token of a prompt of {p.prompt_tokens} after {_seconds(p.ttft_s)}")
        click.echo(f"then {_rate(p.decode_tok_s)}, bound by {p.bound}")
    else:
        prompts = f"{p.concurrency} prompts of {p.prompt_tokens}"
        click.echo(f"first tokens of all {prompts} after {_seconds(p.ttft_s)}")
        click.echo(f"then {_rate(p.decode_tok_s)} together, bound by {p.bound}")
    if p.sweep_bytes:
        click.echo(
            f"each sweep reads {format_size(p.sweep_bytes)} in {_seconds(p.sweep_read_s)} "
            f"beside {_seconds(p.sweep_compute_s)} of work"
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
                _seconds(t.predicted.ttft_s),
                _rate(t.predicted.decode_tok_s),
                t.predicted.bound,
            )
            for t in table
        ],
    )


def _shares(plan: Plan) -> list[tuple[str, str]]:
    from dataclasses import asdict

    shares: dict[str, Any] = asdict(plan.predicted.memory)
    return [(owner, format_size(nbytes)) for owner, nbytes in shares.items() if nbytes]


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _rate(tok_s: float) -> str:
    return f"{tok_s:.3g} tok/s"
