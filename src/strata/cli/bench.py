"""``strata bench``: speed of prefill and decode on synthetic tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from strata.cli import explain_report
from strata.cli.console import print_json, print_table
from strata.cli.engine_options import (
    Command,
    activations_option,
    backend_options,
    kv_seen_options,
    memory_report,
    open_llm,
)
from strata.cli.options import (
    explain_option,
    json_option,
    memory_option,
    model_argument,
    quiet_option,
)
from strata.errors import UsageError
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.backends.settings import ActivationsName
    from strata.report import Spread


def _count(name: str, default: int, least: int, help: str) -> Callable[[Command], Command]:
    return click.option(
        name, type=click.IntRange(min=least), default=default, show_default=True, help=help
    )


@click.command("bench")
@model_argument
@_count("--prompt", 512, 0, "Tokens to prefill; 0: do not measure prefill.")
@_count("--gen", 128, 0, "Tokens to decode; 0: do not measure decode.")
@_count("--depth", 0, 0, "Tokens already in the context before decoding.")
@_count("--repeat", 5, 1, "Repetitions; the median is reported.")
@click.option("--ops", is_flag=True, help="Also measure each kind of Op against the roofline.")
@backend_options
@activations_option
@kv_seen_options
@memory_option
@explain_option
@quiet_option
@json_option
def command(
    model: str,
    prompt: int,
    gen: int,
    depth: int,
    repeat: int,
    ops: bool,
    backend: str,
    threads: int | None,
    kv_type: str | None,
    activations: ActivationsName,
    kv_window: str | None,
    kv_read: int,
    memory: int | None,
    explain: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure MODEL's speed: prefill of a prompt, and decode of tokens at a depth.

    The tokens are random; every repetition computes everything anew, after a short warm-up.
    """
    if prompt + gen == 0:
        raise UsageError("nothing to measure: both --prompt and --gen are 0")
    from strata.plan import Workload
    from strata.program import StepSize
    from strata.report import context_for_measurement

    context = context_for_measurement(prompt=prompt, gen=gen, depth=depth)
    if ops:
        from strata.report.op_times import check_times_ops, context_for_ops

        context = max(context, context_for_ops(depth=depth))
    with open_llm(
        model,
        backend=backend,
        threads=threads,
        kv_type=kv_type,
        activations=activations,
        kv_window=kv_window,
        kv_read=kv_read,
        context=context,
        quiet=quiet,
        memory=memory,
        workload=Workload(max(prompt, 1), answer_tokens=gen),
        planned=explain,
    ) as llm:
        if ops:
            check_times_ops(llm.engine)
        result = llm.measure(
            prompt=prompt,
            gen=gen,
            depth=depth,
            repeat=repeat,
            progress=None if quiet or not sys.stderr.isatty() else _show_progress,
        )
        weight_bytes = llm.engine.runner.cost(StepSize(1, 1, depth + 1)).weight_bytes
        decode = result.decode_tok_s
        report = {
            "model": model,
            "backend": llm.backend,
            "threads": llm.threads,
            "isa": llm.isa,
            "prompt": prompt,
            "gen": gen,
            "depth": depth,
            "repeat": repeat,
            **_spread("prefill_tok_s", result.prefill_tok_s),
            **_spread("decode_tok_s", decode),
            **_spread("ttft_s", result.ttft_s),
            "load_s": llm.load_s,
            "weight_bytes_per_token": weight_bytes,
            "weight_read_gb_s": weight_bytes * decode.median / 1e9 if decode else None,
            "kv_bytes": llm.engine.kv_bytes,
            "memory": memory_report(),
            "explanation": explain_report.as_json(llm.explain()),
        }
        lines = list(explain_report.lines(llm.explain()))
        if ops:
            from strata.cli.op_report import op_report

            report["ops"] = op_report(llm, prompt=prompt, depth=depth, repeat=repeat)
    if as_json:
        print_json(report)
    else:
        _print(report)
        for line in lines:
            click.echo(line)


def _print(report: dict[str, Any]) -> None:
    work = {
        "prefill_tok_s": f"prefill of {report['prompt']}",
        "decode_tok_s": f"decode of {report['gen']} at depth {report['depth']}",
    }
    rows = [
        (title, *(f"{report[key + end]:.2f}" for end in ("", "_min", "_max")))
        for key, title in work.items()
        if report[key] is not None
    ]
    print_table(("TOKENS A SECOND", "MEDIAN", "LEAST", "MOST"), rows)
    threads = "" if report["threads"] is None else f", {report['threads']} threads"
    click.echo(f"{report['backend']} backend, {report['isa']}{threads}")
    read = report["weight_read_gb_s"]
    click.echo(
        f"{format_size(report['weight_bytes_per_token'])} of weights a token"
        + ("" if read is None else f", read at {read:.1f} GB/s")
    )
    peak = format_size(report["memory"]["peak_bytes"])
    click.echo(f"loaded in {report['load_s']:.2f} s, peak memory {peak}")
    if "ops" in report:
        from strata.cli.op_report import print_op_report

        print_op_report(report["ops"])


def _spread(name: str, spread: Spread | None) -> dict[str, float | None]:
    if spread is None:
        return {name: None, f"{name}_min": None, f"{name}_max": None}
    return {name: spread.median, f"{name}_min": spread.least, f"{name}_max": spread.most}


def _show_progress(done: int, repeat: int) -> None:
    click.echo(f"\r[{done}/{repeat}]\x1b[K", nl=done == repeat, err=True)
