"""``strata routes``: which experts a text chooses, and what a cache of some of them would find."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from strata.cli.console import print_json, print_table, printable
from strata.cli.engine_options import open_llm, read_text
from strata.cli.options import (
    json_option,
    memory_option,
    model_argument,
    quiet_option,
    threads_option,
)
from strata.errors import UsageError
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.plan.routes import Routes
    from strata.report.routes import Comparison

_WINDOW = 512
_LEAST_EACH = 8
_TENTHS = (0.05, 0.1, 0.25, 0.5)
_BAR = 40


@click.command("routes")
@model_argument
@click.option(
    "--text",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The text, a file in UTF-8.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=64),
    default=2048,
    show_default=True,
    help="The first so many of the text.",
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Compare policies for so many sequences together, each with its part of the text.",
)
@threads_option
@memory_option
@quiet_option
@json_option
def command(
    model: str,
    file: Path,
    tokens: int,
    parallel: int,
    threads: int | None,
    memory: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Record which experts of MODEL a text chooses, and what a cache of some would find.

    Shows how skewed and how sticky the choices are, and the hit rate of each policy at each number
    of slots, on the second half of the text. What was found is kept: plans for this file go by it.
    """
    text = read_text(file)
    with open_llm(
        model,
        backend="cpu",
        threads=threads,
        kv_type=None,
        context=_WINDOW,
        quiet=quiet,
        memory=memory,
    ) as llm:
        from strata.report.routes import TOGETHER, apart, compare, curves, keep, record

        ids = llm.tokenize(text)
        few = min(tokens, len(ids))
        if few < 16 * parallel + 2:
            raise UsageError(f"{file} has {few} tokens: too few to see anything by")
        together = parallel if parallel > 1 else TOGETHER
        window = min(_WINDOW, llm.context)
        each = min(window, few // together)
        if parallel > 1 and each < _LEAST_EACH:
            raise UsageError(
                f"{each} tokens for each of {parallel} sequences are too few to see anything by"
            )
        with llm.driver.alone(idle=True) as engine:
            show = None if quiet else _show_progress
            routes = record(llm.runtime, engine, ids[:few], window, show)
            found = curves(routes)
            if each >= _LEAST_EACH:
                parts = record(llm.runtime, engine, apart(ids, together, each), each, show)
                found += curves(parts, together)
        slot = llm.runtime.slot_bytes
        compared = compare(parts if parallel > 1 else routes, parallel)
        kept = keep(llm.path, routes, found)
    if as_json:
        print_json(_as_json(model, routes, compared, parallel, slot, kept))
        return
    _print(model, routes, compared, parallel, slot)
    if kept is not None:
        click.echo("\nkept: plans for this file go by these hit rates from now on")


def _as_json(
    model: str,
    routes: Routes,
    compared: list[Comparison],
    parallel: int,
    slot: int,
    kept: Path | None,
) -> dict[str, object]:
    return {
        "model": model,
        "tokens": routes.tokens,
        "layers": len(routes.experts),
        "experts": sum(routes.experts),
        "top_k": int(routes.chosen.shape[2]),
        "parallel": parallel,
        "skew": {str(share): routes.skew(share) for share in _TENTHS},
        "stickiness": routes.stickiness(),
        "stickiness_by_chance": routes.by_chance,
        "slot_bytes": slot,
        "hit_rates": [{"slots": c.slots, "bytes": c.slots * slot, **c.rates} for c in compared],
        "kept": None if kept is None else str(kept),
    }


def _print(
    model: str, routes: Routes, compared: list[Comparison], parallel: int, slot: int
) -> None:
    total = sum(routes.experts)
    click.echo(
        f"{printable(model)}: {routes.tokens} tokens chose {routes.chosen.shape[2]} of "
        f"{max(routes.experts)} experts in each of {len(routes.experts)} layers"
    )
    click.echo()
    for share in _TENTHS:
        used = routes.skew(share)
        bar = "#" * round(_BAR * used) + "." * (_BAR - round(_BAR * used))
        click.echo(f"the most used {share:4.0%}  {bar} {used:4.0%} of uses")
    click.echo()
    click.echo(
        f"of a token's experts {routes.stickiness():.0%} were those of the token before "
        f"({routes.by_chance:.0%} by chance)"
    )
    click.echo()
    what = "token" if parallel == 1 else f"step of {parallel} tokens"
    click.echo(f"of the experts that a {what} needs, in memory:")
    names = list(compared[0].rates)
    print_table(
        ("SLOTS", "SHARE", "BYTES", *(name.upper() for name in names)),
        [
            (
                str(c.slots),
                f"{c.slots / total:.0%}",
                format_size(c.slots * slot),
                *(f"{c.rates[name]:.0%}" for name in names),
            )
            for c in compared
        ],
    )


def _show_progress(done: int, windows: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r[{done}/{windows}] windows\x1b[K", nl=done == windows, err=True)
