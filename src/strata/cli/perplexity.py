"""``strata perplexity``: how well a model predicts a text."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from strata.cli.console import print_json, remark
from strata.cli.engine_options import (
    batch_options,
    kv_seen_options,
    memory_report,
    open_llm,
    read_text,
)
from strata.cli.failures import terminable
from strata.cli.options import model_argument
from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.memory import Ledger
    from strata.plan import Workload
    from strata.report import Perplexity
    from strata.text import Tokenizer


@click.command("perplexity")
@model_argument
@click.option(
    "--text",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The text, a file in UTF-8.",
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=4),
    default=512,
    show_default=True,
    help="Tokens of a window.",
)
@click.option("--chunks", type=click.IntRange(min=1), help="Windows to score (default: all).")
@kv_seen_options
@batch_options
@terminable()
def command(
    model: str,
    file: Path,
    context: int,
    chunks: int | None,
    quiet: bool,
    as_json: bool,
    **loading: Any,
) -> None:
    """Measure how well MODEL predicts a text, with the method of llama.cpp's tool.

    The text is cut into windows, and the second half of each is scored; a model that begins texts
    with a special token sees it first in every window. Lower is better.
    """
    # llama.cpp drops one newline at the end of the file, too.
    text = read_text(file).removesuffix("\n")
    if not text:
        raise UsageError(f"{file} is empty")
    from strata.engine.texts import TextWorkload, encoded, most_tokens
    from strata.plan import Workload
    from strata.report.perplexity import SCORED_BYTES
    from strata.text.cutting import PART

    ids: Sequence[int] | None = None
    most = None if chunks is None else chunks * context

    def planned(tokens: int) -> Workload:
        held = tokens * (array("i").itemsize + SCORED_BYTES)
        return Workload(context - 1, logit_rows=context, answer_tokens=0, text_bytes=held)

    def made(tokenizer: Tokenizer, ledger: Ledger) -> Workload:
        # Before the weights are there, and once.
        nonlocal ids
        ids = encoded(tokenizer, text, ledger, add_special=True, most=most)
        return planned(len(ids))

    tokens = most_tokens(len(text.encode("utf-8", "replace")))
    # Of a part, of which each character has four bytes at most, all are made.
    tokens = tokens if most is None else min(tokens, most + 4 * PART)
    workload = TextWorkload(planned(tokens), made)

    with open_llm(
        model,
        context=context,
        quiet=quiet,
        **loading,
        workload=workload,
    ) as llm:
        started = perf_counter()
        result = llm.perplexity(
            text if ids is None else ids,
            context=context,
            chunks=chunks,
            progress=None if quiet else _show_progress,
        )
        seconds = perf_counter() - started
        if as_json:
            print_json(
                {
                    "model": model,
                    "perplexity": result.perplexity,
                    "stderr": result.stderr,
                    "nll": result.nll,
                    "tokens": result.tokens,
                    "chunks": result.chunks,
                    "context": result.context,
                    "seconds": seconds,
                    "load_s": llm.load_s,
                    "backend": llm.backend,
                    "threads": llm.threads,
                    "isa": llm.isa,
                    "memory": memory_report(),
                }
            )
            return
    click.echo(
        f"perplexity {result.perplexity:.4f} +/- {result.stderr:.4f} "
        f"(windows of {context}: {result.chunks}, scored tokens: {result.tokens})"
    )


def _show_progress(so_far: Perplexity, chunks: int) -> None:
    line = f"[{so_far.chunks}/{chunks}] {so_far.perplexity:.4f} +/- {so_far.stderr:.4f}"
    if sys.stderr.isatty():
        # Over the line before; the last one stays.
        click.echo(f"\r{line}\x1b[K", nl=so_far.chunks == chunks, err=True)
    else:
        remark(line)
