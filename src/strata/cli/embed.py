"""``strata embed``: texts to embeddings."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

import click

from strata.cli.console import print_json
from strata.cli.engine_options import backend_options, memory_report, open_llm, read_text
from strata.cli.options import json_option, memory_option, model_argument, quiet_option
from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.memory import Ledger
    from strata.plan import Workload
    from strata.text import Tokenizer

_PARALLEL = 8
"""Texts that share a step: the weights are read once for all of them."""


@click.command("embed")
@model_argument
@click.argument("texts", nargs=-1)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Embed each line of a file.",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "first", "last"]),
    help="How those of a text's tokens become one (default: as the model says, else mean).",
)
@click.option("--dimensions", type=click.IntRange(min=1), help="Keep so many, the first ones.")
@click.option("--raw", is_flag=True, help="Leave their length as it is, instead of 1.")
@click.option(
    "-c", "--context", type=click.IntRange(min=1), help="Tokens of the longest text there may be."
)
@backend_options
@memory_option
@quiet_option
@json_option
def command(
    model: str,
    texts: tuple[str, ...],
    file: Path | None,
    pooling: str | None,
    dimensions: int | None,
    raw: bool,
    context: int | None,
    backend: str,
    threads: int | None,
    kv_type: str | None,
    memory: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print the embedding of each of TEXTS, of each line of a file, or of standard input: a line of
    numbers a text, or all of them as one JSON object."""
    if texts and file is not None:
        raise UsageError("give texts or --file, not both")
    asked = list(texts)
    if not asked:
        if file is None and sys.stdin.isatty():
            raise UsageError("give texts, --file, or lines on standard input")
        asked = read_text(file).splitlines()
    if not asked:
        raise UsageError("there is no text to embed")
    if empty := [number for number, text in enumerate(asked, 1) if not text.strip()]:
        raise UsageError(f"text {empty[0]} is empty")
    from strata.engine.texts import encoded
    from strata.plan import Workload

    parallel = min(_PARALLEL, len(asked))
    ids: list[array[int]] = []

    def workload(tokenizer: Tokenizer, ledger: Ledger) -> Workload:
        # Before the weights are there, and once.
        ids.extend(encoded(tokenizer, text, ledger, add_special=True) for text in asked)
        held = sum(len(each) * each.itemsize for each in ids)
        longest = max(len(each) for each in ids)
        return Workload(longest, answer_tokens=0, text_bytes=held)

    with open_llm(
        model,
        backend=backend,
        threads=threads,
        kv_type=kv_type,
        context=context,
        quiet=quiet,
        memory=memory,
        parallel=parallel,
        workload=workload,
        embedding=True,
    ) as llm:
        found = llm.embed(
            ids or asked,
            pooling=pooling,  # type: ignore[arg-type]
            dimensions=dimensions,
            normalize=not raw,
            progress=None if quiet or not sys.stderr.isatty() else _show_progress,
        )
        if as_json:
            print_json(
                {
                    "model": model,
                    "embeddings": found.tolist(),
                    "dimensions": found.shape[1],
                    "load_s": llm.load_s,
                    "backend": llm.backend,
                    "threads": llm.threads,
                    "isa": llm.isa,
                    "memory": memory_report(),
                }
            )
            return
    for row in found:
        click.echo(" ".join(f"{value:.8g}" for value in row.tolist()))


def _show_progress(done: int, count: int) -> None:
    click.echo(f"\r[{done}/{count}]\x1b[K", nl=done == count, err=True)
