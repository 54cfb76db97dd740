"""``strata plan --fit``: which quantisation of a model is the best for a budget."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import click

from strata.backends.registry import DEFAULT, backend_class
from strata.backends.weights import WeightSource
from strata.cli.console import print_table, printable
from strata.formats import ModelFile
from strata.models import build_model
from strata.plan import BudgetTooSmall, Limits, Machine, Plan, Workload, to_json
from strata.plan.outline import outline
from strata.plan.planner import plan
from strata.quantizer.directories import as_gguf
from strata.records import dataclass
from strata.report.quality.known import KnownCost, known_quality
from strata.report.quality.measured import MeasuredQuality, lineage, most_of, recall
from strata.sizes import format_size, format_speed
from strata.synth.recipes import RECIPES
from strata.synth.retyped import retyped

_LEFT_OUT = ("F32", "MXFP4")
"""Nobody takes the first for the memory that it wants; the other is for experts."""


@dataclass(frozen=True)
class Fit:
    """A quantisation: the bytes of its file, how it would run, None where the budget is too small
    even to stream it, and what it costs; ``own``: as measured of this very model."""

    name: str
    nbytes: int
    bits: float
    plan: Plan | None
    cost: KnownCost | None
    own: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing streams."""
        return self.plan is not None and not self.plan.predicted.sweep_bytes


def fits(
    model: str, file: ModelFile, machine: Machine, limits: Limits, workload: Workload
) -> tuple[list[Fit], MeasuredQuality | None]:
    """Every quantisation of which the sizes are known, the largest first, and what `strata quality`
    measured of this model."""
    file = as_gguf(file, vocabulary=False)
    name = lineage(file)
    measured = None if name is None else recall(name)
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
        type = most_of(header)
        own = None if measured is None else measured.cost(header.nbytes, type)
        cost = own or known.get(recipe)
        if cost is not None and cost.type != type:
            cost = None
        found.append(Fit(recipe, header.nbytes, bits, made, cost, own is not None))
    return sorted(found, key=lambda fit: -fit.nbytes), measured


def best(found: Sequence[Fit]) -> Fit | None:
    """Of those of which nothing streams the one with the most bits, or a smaller one that lost less
    where both were measured, of the same model. Where all stream, the one that decodes fastest."""
    whole = sorted((fit for fit in found if fit.whole), key=lambda fit: -fit.nbytes)
    if whole:
        largest = whole[0]
        if largest.cost is None:
            return largest
        alike = [fit for fit in whole if fit.own == largest.own]
        return min(alike, key=lambda f: f.cost.kl if f.cost else inf)
    streamed = [fit for fit in found if fit.plan is not None]
    return max(streamed, key=_speed, default=None)


def _speed(fit: Fit) -> float:
    return 0.0 if fit.plan is None else fit.plan.predicted.decode_tok_s


def as_object(found: Sequence[Fit], measured: MeasuredQuality | None) -> dict[str, Any]:
    """For ``--json``."""
    chosen, known = best(found), known_quality()
    return {
        "best": None if chosen is None else chosen.name,
        "quality_of": known.model,
        "quality_how": known.how,
        "measured": None
        if measured is None
        else {"text": measured.text, "windows": measured.windows, "context": measured.context},
        "quantisations": [
            {
                "name": fit.name,
                "bytes": fit.nbytes,
                "bits_per_weight": fit.bits,
                "streams": None if fit.plan is None else fit.plan.predicted.sweep_bytes,
                "predicted": None if fit.plan is None else to_json(fit.plan.predicted),
                "quality": None
                if fit.cost is None
                else {**vars(fit.cost), "of_this_model": fit.own},
            }
            for fit in found
        ],
    }


def print_fits(
    model: str, budget: int, found: Sequence[Fit], measured: MeasuredQuality | None
) -> None:
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
            ["not measured", "", ""]
            if c is None
            else [f"{c.kl:.4f}", f"{100 * c.same_top:.1f} %", "this" if fit.own else "another"]
        )
        rows.append(row)
    heads = ("", "TYPE", "FILE", "BITS", "STREAMS", "DECODE", "KL", "SAME TOP", "OF")
    print_table(heads, rows)
    click.echo()
    if chosen is None:
        click.echo("no quantisation runs in this budget")
    elif chosen.whole:
        click.echo(f"best of those that stay in memory: {chosen.name}")
    else:
        click.echo(f"none stays in memory; the fastest of those that stream: {chosen.name}")
    own, others = (any(f.cost and f.own == mine for f in found) for mine in (True, False))
    if own and measured is not None:
        click.echo(
            f"quality of this model: by `strata quality` on {measured.windows} windows of "
            f"{measured.context} tokens of {printable(measured.text)}"
        )
    if others or not own:
        click.echo(f"quality of another: of {known.model}, not of this model; {known.how}")
    click.echo(
        "where it was not measured more bits are taken for better; `strata quality` measures"
    )
