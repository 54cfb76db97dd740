"""``strata imatrix``: the importance of a model's columns by a text."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import click

from strata.cli.console import print_json, progress_bars
from strata.cli.failures import terminable
from strata.cli.options import json_option, model_argument, quiet_option, threads_option
from strata.cli.quantize import calibration_text, calibration_threads
from strata.errors import UsageError


@click.command("imatrix")
@model_argument
@click.option(
    "--text",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The text to measure with; some tens of thousands of words of what the model is for.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file.")
@click.option("--chunks", type=click.IntRange(min=1), help="Windows to use  [default: all].")
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=16),
    default=512,
    show_default=True,
    help="Tokens of a window.",
)
@threads_option
@quiet_option
@json_option
@terminable()
def command(
    model: str,
    text: Path,
    out: Path,
    chunks: int | None,
    context: int,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write OUT, an importance matrix of MODEL as llama.cpp's tools read and write them.

    `strata quantize --imatrix` weighs errors with it.
    """
    if out.suffix != ".gguf":
        raise UsageError(f"{out} is not named like a GGUF file; end it in .gguf")
    count = calibration_threads(threads)
    from strata.formats import open_model
    from strata.hub.references import resolve
    from strata.quantizer.importance import write_importance
    from strata.quantizer.lab import STEPS, measure_importance
    from strata.quantizer.opening import as_gguf

    started = perf_counter()
    with (
        progress_bars(silent=quiet or as_json, counted=STEPS) as progress,
        open_model(resolve(model, progress=progress)) as opened,
    ):
        file = as_gguf(opened)
        calibration = calibration_text(file, text, context, chunks)
        matrix = measure_importance(file, calibration, count, progress)
    write_importance(out, matrix)
    seconds = perf_counter() - started
    if as_json:
        print_json(
            {
                "model": model,
                "path": str(out),
                "tensors": len(matrix.entries),
                "chunks": matrix.chunks,
                "context": context,
                "seconds": seconds,
            }
        )
        return
    click.echo(
        f"{out}: {len(matrix.entries)} tensors over {matrix.chunks} windows of {context} tokens, "
        f"{seconds:.1f} s"
    )
