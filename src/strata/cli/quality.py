"""``strata quality``: what models lost against another one, and what their bytes buy."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from strata.cli.console import print_json
from strata.cli.engine_options import backend_options, kv_seen_options
from strata.cli.failures import resumable, terminable
from strata.cli.options import (
    KV_TYPE,
    SIZE,
    json_option,
    memory_option,
    quiet_option,
)
from strata.errors import UsageError

_text_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("quality")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--base", help="The model that they are compared with, such as the unquantised one.")
@click.option("--text", type=_text_file, help="A text to be predicted, a file in UTF-8.")
@click.option(
    "--tasks",
    type=_text_file,
    help="Questions with several answers, a line of JSON each: query, choices, gold.",
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
@click.option(
    "--whole",
    is_flag=True,
    help="Score all of a window, not only its second half as llama.cpp does.",
)
@click.option("--layers", is_flag=True, help="Also compare what each layer gives.")
@click.option("--positions", is_flag=True, help="Also print the loss by position in the window.")
@click.option(
    "--logits",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keep the base's logits in this file, or take them from there; a run that was ended goes "
    "on where it was.",
)
@click.option(
    "--scratch-size",
    type=SIZE,
    default="4GiB",
    show_default=True,
    help="Room on the disk for the base's logits where no --logits keeps them.",
)
@click.option(
    "--base-kv-type",
    type=KV_TYPE,
    help="How the base keeps keys and values (default: as --kv-type).",
)
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a picture: loss against bytes.",
)
@backend_options
@kv_seen_options
@memory_option
@quiet_option
@json_option
@terminable()
def command(
    models: tuple[str, ...],
    base: str | None,
    text: Path | None,
    tasks: Path | None,
    context: int,
    chunks: int | None,
    whole: bool,
    layers: bool,
    positions: bool,
    logits: Path | None,
    scratch_size: int,
    base_kv_type: str | None,
    svg: Path | None,
    backend: str,
    threads: int | None,
    kv_type: str | None,
    kv_window: str | None,
    kv_read: int,
    memory: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure how well each MODEL predicts a text, and what it lost against --base.

    Against a base: KL divergence, how often both hold the same token for the likeliest, and the
    change of the right token's probability, with intervals of 95 % and a paired test, all as
    llama.cpp's `perplexity --kl-divergence` defines them. Of several models it tells which are best
    for their bytes.
    """
    if text is None and tasks is None:
        raise UsageError("give a --text to predict, --tasks to answer, or both")
    if text is None and (layers or logits is not None or svg is not None or positions):
        raise UsageError("--layers, --positions, --logits and --svg are of a --text")
    if layers and base is None:
        raise UsageError("--layers compares with a --base")
    if base_kv_type is not None and base is None:
        raise UsageError("--base-kv-type is of a --base")
    from strata.cli.quality_report import as_object, print_report, write_svg
    from strata.cli.quality_run import Lab, Options, keep_for_plans

    lab = Lab(
        Options(
            text=text,
            tasks=tasks,
            context=context,
            chunks=chunks,
            whole=whole,
            layers=layers,
            logits=logits,
            scratch_bytes=scratch_size,
            backend=backend,
            threads=threads,
            kv_type=kv_type,
            base_kv_type=base_kv_type or kv_type,
            kv_window=kv_window,
            kv_read=kv_read,
            memory=memory,
            quiet=quiet,
        )
    )
    # Kept logits are what it goes on from.
    with nullcontext() if logits is None else resumable():
        results = lab.run(models, base)
    keep_for_plans(results)
    if svg is not None:
        write_svg(svg, results)
    if as_json:
        print_json(as_object(results))
    else:
        print_report(results, positions=positions)
