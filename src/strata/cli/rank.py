"""``strata rank``: texts by how well they answer a question."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from strata.cli.console import print_json, printable
from strata.cli.engine_options import batch_options, memory_report, open_llm
from strata.cli.options import model_argument
from strata.cli.text_lists import MOST_PARALLEL, Encoded, asked_texts, file_option, progress_line


@click.command("rank")
@model_argument
@click.argument("query")
@click.argument("texts", nargs=-1)
@file_option
@click.option(
    "-c", "--context", type=click.IntRange(min=1), help="Longest pair of query and text, in tokens."
)
@batch_options
def command(
    model: str,
    query: str,
    texts: tuple[str, ...],
    file: Path | None,
    context: int | None,
    quiet: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Print TEXTS, lines of a file, or those of standard input, the best for QUERY first: a line
    with its score each, or all of them as one JSON object."""
    from strata.engine.texts import pair_ids

    asked = asked_texts(texts, file)
    pairs = Encoded(asked, partial(pair_ids, query=query), beside=query)
    with open_llm(
        model,
        context=context,
        quiet=quiet,
        **loading,
        parallel=min(MOST_PARALLEL, len(asked)),
        workload=pairs.workload(),
        embedding=True,
    ) as llm:
        ids = pairs.ids(llm.tokenizer, llm.ledger)
        scores = llm.rank(query, ids, progress=progress_line(quiet))
        order = sorted(range(len(asked)), key=lambda i: -scores[i])
        if as_json:
            print_json(
                {
                    "model": model,
                    "results": [{"index": i, "score": float(scores[i])} for i in order],
                    "load_s": llm.load_s,
                    "backend": llm.backend,
                    "threads": llm.threads,
                    "isa": llm.isa,
                    "memory": memory_report(),
                }
            )
            return
    for i in order:
        click.echo(f"{scores[i]:.6g}\t{printable(asked[i])}")
