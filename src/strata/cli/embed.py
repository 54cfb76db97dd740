"""``strata embed``: texts to embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import click

from strata.cli.engine_options import backend_options, memory_report, open_llm
from strata.cli.options import json_option, memory_option, model_argument, quiet_option
from strata.cli.text_lists import MOST_PARALLEL, Encoded, asked_texts, file_option, progress_line

_TOGETHER = 4 * MOST_PARALLEL


@click.command("embed")
@model_argument
@click.argument("texts", nargs=-1)
@file_option
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
    from strata.engine.texts import encoded

    asked = asked_texts(texts, file)
    ids = Encoded(
        asked, lambda tokenizer, text, ledger: encoded(tokenizer, text, ledger, add_special=True)
    )
    with open_llm(
        model,
        backend=backend,
        threads=threads,
        kv_type=kv_type,
        context=context,
        quiet=quiet,
        memory=memory,
        parallel=min(MOST_PARALLEL, len(asked)),
        workload=ids.workload(),
        embedding=True,
    ) as llm:
        # Some at a time, printed as they come: all of many texts would take what nobody planned.
        every = ids.ids(llm.tokenizer, llm.ledger)
        shown = progress_line(quiet)
        width = 0
        llm.engine.check_lengths(every)
        for start in range(0, len(every), _TOGETHER):
            found = llm.embed(
                every[start : start + _TOGETHER],
                pooling=pooling,  # type: ignore[arg-type]
                dimensions=dimensions,
                normalize=not raw,
            )
            width = found.shape[1]
            for index, row in enumerate(found, start):
                if as_json:
                    before = ", " if index else '{"embeddings": ['
                    click.echo(before + json.dumps(row.tolist()), nl=False)
                else:
                    click.echo(" ".join(f"{value:.8g}" for value in row.tolist()))
            if shown is not None:
                shown(min(start + _TOGETHER, len(every)), len(every))
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
