"""``strata plan --fit``: which quantisation of a model is the best for a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import click

from strata.backends.registry import DEFAULT, backend_class
from strata.backends.weights import WeightSource
from strata.cli.console import print_table, printable
from strata.formats import ModelFile
from strata.models import build_model
from strata.plan import BudgetTooSmall, Limits, Machine, Plan, Workload, outline, plan, to_json
from strata.quantizer.directories import as_gguf
from strata.report.quality.known import KnownCost, known_quality
from strata.sizes import format_size, format_speed
from strata.synth.recipes import RECIPES
from strata.synth.retyped import retyped

_LEFT_OUT = ("F32", "MXFP4")
"""Nobody takes the first for the memory that it wants; the other is for experts."""


@dataclass(frozen=True)
class Fit:
    """A quantisation: the bytes of its file, and how it would run, None where the budget is too
    small even to stream it."""

    name: str
    nbytes: int
    bits: float
    plan: Plan | None
    cost: KnownCost | None

    @property
    def whole(self) -> bool:
        """Whether nothing streams."""
        return self.plan is not None and not self.plan.predicted.sweep_bytes


def fits(
    model: str, file: ModelFile, machine: Machine, limits: Limits, workload: Workload
) -> list[Fit]:
    """Every quantisation of which the sizes are known, the largest first."""
    file = as_gguf(file, vocabulary=False)
    architecture = build_model(file).architecture
    weights = sum(prod(info.shape) for info in file.tensors.values())
    known = known_quality().weights
    found = []
    for recipe in RECIPES:
        if recipe in _LEFT_OUT:
            continue
        header = retyped(file, architecture, recipe)
        built = build_model(header)
        profile = backend_class(DEFAULT).profile(built, WeightSource(header))
        sizes = outline(f"{model} as {recipe}", built, header, profile)
        made: Plan | None
        try:
            made = plan(sizes, machine, limits, workload)
        except BudgetTooSmall:
            made = None
        bits = 8 * header.nbytes / weights
        cost = known.get(recipe)
        if cost is not None and cost.type != most_of(header):
            cost = None
        found.append(Fit(recipe, header.nbytes, bits, made, cost))
    return sorted(found, key=lambda fit: -fit.nbytes)


def most_of(file: ModelFile) -> str:
    """The block type of most of the weights."""
    counts: dict[str, int] = {}
    for info in file.tensors.values():
        counts[info.type.name] = counts.get(info.type.name, 0) + prod(info.shape)
    return max(counts, key=lambda name: counts[name])


def best(found: Sequence[Fit]) -> Fit | None:
    """Of those of which nothing streams the one with the most bits, or a smaller one that lost less
    where both were measured. Where all stream, the one that decodes fastest."""
    whole = sorted((fit for fit in found if fit.whole), key=lambda fit: -fit.nbytes)
    if whole:
        largest = whole[0]
        return min(whole, key=lambda f: f.cost.kl if f.cost else inf) if largest.cost else largest
    streamed = [fit for fit in found if fit.plan is not None]
    return max(streamed, key=_speed, default=None)


def _speed(fit: Fit) -> float:
    return 0.0 if fit.plan is None else fit.plan.predicted.decode_tok_s


def as_object(found: Sequence[Fit]) -> dict[str, Any]:
    """For ``--json``."""
    chosen, known = best(found), known_quality()
    return {
        "best": None if chosen is None else chosen.name,
        "quality_of": known.model,
        "quality_how": known.how,
        "quantisations": [
            {
                "name": fit.name,
                "bytes": fit.nbytes,
                "bits_per_weight": fit.bits,
                "streams": None if fit.plan is None else fit.plan.predicted.sweep_bytes,
                "predicted": None if fit.plan is None else to_json(fit.plan.predicted),
                "quality": None if fit.cost is None else vars(fit.cost),
            }
            for fit in found
        ],
    }


def print_fits(model: str, budget: int, found: Sequence[Fit]) -> None:
    """The table, which is best, and what is not known."""
    chosen, known = best(found), known_quality()
    click.echo(f"quantisations of {printable(model)} in {format_size(budget)}")
    click.echo()
    rows = []
    for fit in found:
        row = ["*" if fit is chosen else "", fit.name, format_size(fit.nbytes), f"{fit.bits:.2f}"]
        if fit.plan is None:
            row += ["does not run", ""]
        else:
            p = fit.plan.predicted
            row += [format_size(p.sweep_bytes) if p.sweep_bytes else "nothing"]
            row += [format_speed(p.decode_tok_s)]
        c = fit.cost
        row += (
            ["not measured", ""]
            if c is None
            else [
                f"{c.kl:.4f}",
                f"{100 * c.same_top:.1f} %",
            ]
        )
        rows.append(row)
    print_table(("", "TYPE", "FILE", "BITS", "STREAMS", "DECODE", "KL", "SAME TOP"), rows)
    click.echo()
    if chosen is None:
        click.echo("no quantisation runs in this budget")
    elif chosen.whole:
        click.echo(f"best of those that stay in memory: {chosen.name}")
    else:
        click.echo(f"none stays in memory; the fastest of those that stream: {chosen.name}")
    click.echo(f"quality: of {known.model}, not of this model; {known.how}")
    click.echo(
        "where it was not measured more bits are taken for better; `strata quality` measures"
    )
