"""``strata embed``: texts to embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from strata.cli.engine_options import batch_options, memory_report, open_llm
from strata.cli.failures import error_object
from strata.cli.options import model_argument
from strata.cli.text_lists import MOST_PARALLEL, Encoded, asked_texts, file_option, progress_line

_TOGETHER = 4 * MOST_PARALLEL


@click.command("embed")
@model_argument
@click.argument("texts", nargs=-1)
@file_option
@click.option(
    "--pooling",
    type=click.Choice(["mean", "first", "last"]),
    help="How the vectors of a text's tokens become one (default: as the model says, else mean).",
)
@click.option("--dimensions", type=click.IntRange(min=1), help="Keep only the first N dimensions.")
@click.option("--raw", is_flag=True, help="Do not normalise vectors to length 1.")
@click.option("-c", "--context", type=click.IntRange(min=1), help="Longest text, in tokens.")
@batch_options
def command(
    model: str,
    texts: tuple[str, ...],
    file: Path | None,
    pooling: str | None,
    dimensions: int | None,
    raw: bool,
    context: int | None,
    quiet: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Print the embedding of each of TEXTS, of each line of a file, or of standard input: a line of
    numbers a text, or all of them as one JSON object."""
    from strata.engine.texts import encoded

    asked = asked_texts(texts, file)
    ids = Encoded(
        asked, lambda tokenizer, text, ledger: encoded(tokenizer, text, ledger, add_special=True)
    )
    with open_llm(
        model,
        context=context,
        quiet=quiet,
        **loading,
        parallel=min(MOST_PARALLEL, len(asked)),
        workload=ids.workload(),
        embedding=True,
    ) as llm:
        # Some at a time, printed as they come: all of many texts would take what nobody planned.
        every = ids.ids(llm.tokenizer, llm.ledger)
        shown = progress_line(quiet)
        width = 0
        llm.engine.check_lengths(every)
        try:
            for start in range(0, len(every), _TOGETHER):
                found = llm.embed(
                    every[start : start + _TOGETHER],
                    pooling=pooling,  # type: ignore[arg-type]
                    dimensions=dimensions,
                    normalize=not raw,
                )
                width = found.shape[1]
                for index, row in enumerate(found, start):
                    _print(row.tolist(), index, as_json)
                if shown is not None:
                    shown(min(start + _TOGETHER, len(every)), len(every))
        except (Exception, KeyboardInterrupt) as error:
            if as_json and width:
                # What has begun is ended, so that it can be read.
                click.echo(f'], "error": {json.dumps(error_object(error))}}}')
                error.in_json = True  # type: ignore[union-attr]
            raise
        if as_json:
            rest = {
                "model": model,
                "dimensions": width,
                "load_s": llm.load_s,
                "backend": llm.backend,
                "threads": llm.threads,
                "isa": llm.isa,
                "memory": memory_report(),
            }
            click.echo(f"], {json.dumps(rest)[1:]}")


def _print(values: list[float], index: int, as_json: bool) -> None:
    if as_json:
        before = ", " if index else '{"embeddings": ['
        click.echo(before + json.dumps(values), nl=False)
    else:
        click.echo(" ".join(f"{value:.8g}" for value in values))
