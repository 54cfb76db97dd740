"""What ``strata quality`` found, as a table with a picture, as JSON and as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from strata.cli.console import counted, print_table, printable
from strata.cli.engine_options import memory_report
from strata.cli.quality_run import Measured, Results
from strata.errors import UsageError
from strata.report.quality.chart import Point, drawing, front, svg
from strata.report.quality.figures import Estimate, Values, pareto, proportion, sign_test

_KL = "KL divergence from the base, nats a token"
_PERPLEXITY = "perplexity"


def names(models: Sequence[Measured]) -> list[str]:
    """File names, and references where two have the same."""
    short = [m.subject.path.stem for m in models]
    return [
        name if short.count(name) == 1 else m.subject.reference
        for name, m in zip(short, models, strict=True)
    ]


def points(results: Results) -> list[Point]:
    """Models with their bytes and loss, those that lost something."""
    found = []
    for name, m in zip(names(results.models), results.models, strict=True):
        if m.summary is None:
            continue
        loss = m.summary.kl or m.summary.perplexity
        if loss.value > 0:
            found.append(Point(name, m.subject.nbytes, loss.value, loss.low, loss.high))
    return found


def write_svg(path: Path, results: Results) -> None:
    """Write the picture; UsageError where the file cannot be written."""
    there = points(results)
    if not there:
        raise UsageError("--svg: no model lost anything: there is nothing to draw")
    loss = _KL if results.kept_base else _PERPLEXITY
    title = f"Loss against {results.kept_base}" if results.kept_base else "Perplexity and bytes"
    try:
        path.write_text(svg(there, loss, title), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def as_object(results: Results) -> dict[str, Any]:
    """Everything, for ``--json``."""
    best = _best(results)
    value: dict[str, Any] = {
        "base": results.base.subject.reference if results.base else results.kept_base,
        "context": results.options.context,
        "windows": results.windows,
        "scored_per_window": results.scored,
        "scoring": "whole windows" if results.options.whole else "second halves",
        "questions": results.questions,
        "models": [_model(m, b) for m, b in zip(results.models, best, strict=True)],
        "pairs": list(_pairs(results)),
        "memory": memory_report(),
    }
    if results.base is not None and results.base.answered is not None:
        value["base_tasks"] = _tasks(results.base, None)
    for model, measured in zip(value["models"], results.models, strict=True):
        if measured.answered is not None:
            model["tasks"] = _tasks(measured, results.base)
    return value


def _model(m: Measured, best: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": m.subject.reference,
        "file_bytes": m.subject.nbytes,
        "bits_per_weight": m.subject.bits_per_weight,
        "kv_type": m.kv_type,
        "seconds": m.seconds,
    }
    if m.summary is not None:
        found |= asdict(m.summary)
        found["on_front"] = best
        found["positions"] = [
            {"first": a, "last": b, "nll": nll, "kl": kl} for a, b, nll, kl in m.summary.positions
        ]
    if m.layers is not None:
        found["layers"] = [{"segment": name, "relative_error": e} for name, e in m.layers]
    return found


def _tasks(m: Measured, base: Measured | None) -> dict[str, Any]:
    assert m.answered is not None
    found: dict[str, Any] = {"cut": m.answered.cut}
    of_base = None if base is None else base.answered
    for name in ("acc", "acc_norm"):
        values: Values = getattr(m.answered, name)
        found[name] = asdict(proportion(values))
        if of_base is not None:
            others: Values = getattr(of_base, name)
            found[name]["change"] = float((values - others).mean())
            found[name]["p_value"] = sign_test(values - others)
    return found


def _pairs(results: Results) -> Any:
    """Each two models, paired by windows: the mean difference of their loss, and how likely one so
    large would be between equals."""
    for i, a in enumerate(results.models):
        for b in results.models[i + 1 :]:
            if a.losses is not None and b.losses is not None:
                apart = b.losses - a.losses
                yield {
                    "models": [a.subject.reference, b.subject.reference],
                    "difference": float(np.mean(apart)),
                    "p_value": sign_test(apart),
                }


def _best(results: Results) -> list[bool]:
    losses = [float(m.losses.mean()) if m.losses is not None else 0.0 for m in results.models]
    return pareto([(m.subject.nbytes, x) for m, x in zip(results.models, losses, strict=True)])


def print_report(results: Results, *, positions: bool) -> None:
    """The table, the layers and positions that were asked for, and the picture."""
    labels = names(results.models)
    if results.windows:
        _print_text(results, labels)
    if positions:
        _print_positions(results, labels)
    if any(m.layers for m in results.models):
        _print_layers(results, labels)
    if results.questions:
        _print_tasks(results, labels)
    there = points(results)
    if len(there) > 1:
        click.echo()
        click.echo(printable_lines(drawing(there, _KL if results.kept_base else _PERPLEXITY)))
        best = ", ".join(p.name for p in front(there))
        click.echo(f"best for their bytes: {printable(best)}")


def printable_lines(text: str) -> str:
    """Lines, each fit for a terminal."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _print_text(results: Results, labels: Sequence[str]) -> None:
    rows = []
    for name, m in zip(labels, results.models, strict=True):
        s = m.summary
        assert s is not None
        row = [name, f"{m.subject.nbytes / 1e6:.1f}", f"{m.subject.bits_per_weight:.2f}"]
        row.append(_between(s.perplexity, "{:.3f}"))
        if s.kl is not None and s.kl_quantiles is not None:
            q = s.kl_quantiles
            change = [e.value for e in (s.log_ratio, s.same_top, s.p_change, s.p_change_rms) if e]
            row += [
                f"{change[0]:+.4f}",
                "-" if s.p_value is None else f"{s.p_value:.2g}",
                _between(s.kl, "{:.5f}"),
                *(f"{q[n].value:.4g}" for n in ("median", "p99", "p99_9")),
                f"{100 * change[1]:.2f}",
                f"{100 * change[2]:+.3f}",
                f"{100 * change[3]:.3f}",
            ]
        rows.append(row)
    header = ["model", "MB", "bits", "perplexity (95 %)"]
    if results.kept_base:
        header += ["ln ratio", "p", "KL mean (95 %)", "median", "99 %", "99.9 %"]
        header += ["same top %", "dp %", "rms dp %"]
    print_table(header, rows)
    against = f", against {results.kept_base}" if results.kept_base else ""
    half = "all" if results.options.whole else "the second halves"
    click.echo(
        f"{counted(results.windows, 'window')} of {results.options.context} tokens, of which "
        f"{half} are scored ({results.windows * results.scored} tokens){printable(against)}"
    )
    if results.windows < 8:
        click.echo("few windows: the intervals say little; take more --chunks")


def _between(e: Estimate, form: str) -> str:
    return f"{form.format(e.value)} ({form.format(e.low)}-{form.format(e.high)})"


def _print_positions(results: Results, labels: Sequence[str]) -> None:
    click.echo()
    summaries = [m.summary for m in results.models if m.summary is not None]
    against = results.kept_base is not None
    header = ["positions", *(f"{n} {'KL' if against else 'nll'}" for n in labels)]
    rows = []
    for part in zip(*(s.positions for s in summaries), strict=True):
        first, last = part[0][:2]
        values = [kl if kl is not None else nll for _, _, nll, kl in part]
        rows.append([f"{first}-{last}", *(f"{v:.5f}" for v in values)])
    print_table(header, rows)


def _print_layers(results: Results, labels: Sequence[str]) -> None:
    click.echo()
    layers = [m.layers or [] for m in results.models]
    rows = [
        [part[0][0], *(f"{100 * e:.3f}" for _, e in part)] for part in zip(*layers, strict=True)
    ]
    print_table(["relative error % after", *labels], rows)


def _print_tasks(results: Results, labels: Sequence[str]) -> None:
    click.echo()
    measured = [*([results.base] if results.base else []), *results.models]
    rows = []
    for name, m in zip([*(["base"] if results.base else []), *labels], measured, strict=True):
        found = _tasks(m, results.base if m is not results.base else None)
        row = [name]
        for key in ("acc", "acc_norm"):
            e = found[key]
            row.append(f"{100 * e['value']:.2f} ({100 * e['low']:.2f}-{100 * e['high']:.2f})")
            p = e.get("p_value")
            row.append("" if "change" not in e else f"{100 * e['change']:+.2f}")
            row.append("" if p is None else f"{p:.2g}")
        rows.append([*row, str(found["cut"])])
    header = ["model", "acc % (95 %)", "change", "p", "acc_norm % (95 %)", "change", "p", "cut"]
    print_table(header, rows)
    click.echo(f"{counted(results.questions, 'question')}")
